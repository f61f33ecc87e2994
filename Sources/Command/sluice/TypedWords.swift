/// What was typed, looked at beside the argument parser: where it names a command that is not there, and where the
/// parser's complaint is to become a sentence that says what to do.
struct TypedWords {
  private let words: [String]
  /// The commands at the start: `["serve", "blk"]`.
  private let commands: [String]

  init(_ words: [String]) {
    self.words = words
    var commands: [String] = []
    if let first = words.first, ["serve", "explain", "check", "matrix", "machine"].contains(first) {
      commands.append(first)
    }
    if commands == ["serve"], words.count > 1, words[1] == "blk" || words[1] == "rng" { commands.append(words[1]) }
    if commands == ["machine"], words.count > 1, words[1] == "run" { commands.append(words[1]) }
    self.commands = commands
  }

  /// The device that is to be served, if one is named.
  var device: (any DeviceCommand.Type)? {
    switch commands {
    case ["serve", "blk"]: ServeBlock.self
    case ["serve", "rng"]: ServeEntropy.self
    default: nil
    }
  }

  /// The parser would count such a word, and all after it, among unexpected arguments.
  func refuseUnknownCommand() throws {
    guard commands.isEmpty || commands == ["serve"], words.count > commands.count else { return }
    let next = words[commands.count]
    // Words with a dash are options, or how a shell asks for completions.
    guard !next.isEmpty, !next.hasPrefix("-"), next != "help" else { return }
    let there =
      commands.isEmpty
      ? "`sluice serve`, `sluice explain`, `sluice check`, `sluice matrix` and `sluice machine`"
      : "`sluice serve blk` and `sluice serve rng`"
    throw Failure.usage("there is no `\(Self.line(commands + [next]))`; there are \(there)")
  }

  /// The parser's complaint in one line, with where to read on.
  func sentence(_ complaint: String) -> String {
    var text = complaint.split(separator: "\n").joined(separator: " ")
    while let last = text.last, ".? ".contains(last) { text.removeLast() }
    text = text.prefix(1).lowercased() + text.dropFirst()
    for (apart, joined) in [(". Did you mean", "; did you mean"), (". Please provide", "; give")] {
      text = text.split(separator: apart, omittingEmptySubsequences: false).joined(separator: joined)
    }
    if text.contains("; did you mean") { return text + "?" }
    return "\(text); see `\(Self.line(commands + ["--help"]))`"
  }

  private static func line(_ words: [String]) -> String { (["sluice"] + words).joined(separator: " ") }
}
