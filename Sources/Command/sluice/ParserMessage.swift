import ArgumentParser

/// What the argument parser complains of, in one sentence that says what to type instead.
struct ParserMessage {
  let sentence: String

  /// - Parameters:
  ///   - error: what parsing `words` threw.
  ///   - words: what was typed after the program's name.
  init(_ error: any Error, of words: [String]) {
    let message = Sluice.fullMessage(for: error)
    let (path, command) = Self.command(namedIn: message)
    // The parser counts a command that is not there among unexpected arguments, or complains of its options.
    let next = words.dropFirst(path.count - 1).first ?? ""
    let isThere = command.configuration.subcommands.contains { $0._commandName == next }
    if !command.configuration.subcommands.isEmpty, !isThere, !next.isEmpty, !next.hasPrefix("-"), next != "help" {
      let there = command.configuration.subcommands.map { "`\((path + [$0._commandName]).joined(separator: " "))`" }
      let list = there.count > 1 ? "are \(there.dropLast().joined(separator: ", ")) and " : "is "
      sentence = "there is no `\((path + [next]).joined(separator: " "))`; there \(list)\(there.last ?? "")"
      return
    }
    let text = Self.line(Sluice.message(for: error))
    let help = (path + ["--help"]).joined(separator: " ")
    sentence = text.contains("; did you mean") ? text + "?" : "\(text); see `\(help)`"
  }

  /// The command that the parser's message refers to, and the words that lead to it.
  private static func command(namedIn message: String) -> ([String], any ParsableCommand.Type) {
    let quoted = message.split(separator: "See '").last?.split(separator: " --help'").first ?? ""
    var path = [Sluice._commandName]
    var command: any ParsableCommand.Type = Sluice.self
    for word in quoted.split(separator: " ").dropFirst() {
      guard let next = command.configuration.subcommands.first(where: { $0._commandName == word }) else { break }
      command = next
      path.append(String(word))
    }
    return (path, command)
  }

  /// The parser's message in one line, without its capital and its full stop.
  private static func line(_ message: String) -> String {
    var text = message.split(separator: "\n").joined(separator: " ")
    while let last = text.last, ".? ".contains(last) { text.removeLast() }
    text = text.prefix(1).lowercased() + text.dropFirst()
    for (apart, joined) in [(". Did you mean", "; did you mean"), (". Please provide", "; give")] {
      text = text.split(separator: apart, omittingEmptySubsequences: false).joined(separator: joined)
    }
    return text
  }
}
