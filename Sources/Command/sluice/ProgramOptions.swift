import ArgumentParser

/// The options that every command has which serves something, whichever protocol it speaks.
struct ProgramOptions: ParsableArguments {
  @Option(
    name: .customLong("log-level"),
    help: ArgumentHelp("Write messages of this level and above to standard error.", valueName: "level"))
  var logLevel: LogLevel = .info

  @Option(
    name: .customLong("log-format"),
    help: ArgumentHelp(
      "Format of the log: lines of text (text), or a JSON object on each line (json).", valueName: "text|json"))
  var logFormat: LogFormat = .text

  @Flag(
    name: .customLong("print-capabilities"),
    help: "Print the program's capabilities as JSON and exit; other options are ignored.")
  var printCapabilities = false
}
