import ArgumentParser
import HostIO

/// The options of a device that is served over vfio-user.
struct VfioUserOptions: ParsableArguments {
  @Option(
    name: .customLong("vfio-user"),
    help: ArgumentHelp(
      """
      Listen for vfio-user clients on a Unix socket at this path. The path must not exist, unless a server that has \
      ended left it behind.
      """,
      valueName: "path"),
    completion: .file())
  var path: String?

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      "Use this open descriptor instead: a listening or a connected Unix socket.", valueName: "number"))
  var fd: Int32?

  @Flag(help: "End when the first client disconnects, instead of waiting for the next one.")
  var once = false

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

  /// Opens the socket that the options name.
  func open() throws -> InheritedSocket {
    try SocketOptions.open(path: path, option: "--vfio-user", fd: fd)
  }
}
