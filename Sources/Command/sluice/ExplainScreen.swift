/// The lines of an answer for people: titles, and texts that are broken between words.
struct ExplainScreen {
  var lines: [String] = []
  /// Where texts begin, and where they end at the latest.
  private static let (indent, width) = (15, 100)

  /// A title and its text, indented below itself where it is long.
  mutating func line(_ title: String, _ text: String) {
    var line = "  " + title.padded(to: Self.indent - 2)
    var isEmpty = true
    for word in text.split(separator: " ") {
      if !isEmpty, line.count + 1 + word.count > Self.width {
        lines.append(line)
        line = "".padded(to: Self.indent)
        isEmpty = true
      }
      line += (isEmpty ? "" : " ") + word
      isEmpty = false
    }
    lines.append(line)
  }
}
