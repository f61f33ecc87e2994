import Foundation

/// A test that names the rules it covers: a Swift test by its display name, a script's by its comment.
struct MarkedTest: Hashable {
  /// Relative to the package.
  var file: String
  var name: String
}

/// Everything in the package that could cover a rule, read from the text of the tests.
struct MarkedTests {
  static let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  /// Every test there is, and the rules it says it covers.
  private(set) var rules: [MarkedTest: Set<Int>] = [:]
  private(set) var disabled: Set<MarkedTest> = []

  init() throws {
    for file in try Self.files(below: "Tests") {
      // This target's own text is about rules, it covers none.
      if file.hasPrefix("Tests/RulesTests/") { continue }
      let text = try String(contentsOf: Self.root.appendingPathComponent(file), encoding: .utf8)
      if file.hasSuffix(".swift") { read(swift: text, file) } else { read(script: text, file) }
    }
    for file in try Self.files(below: "Lab") + Self.files(below: "Scripts") {
      read(script: try String(contentsOf: Self.root.appendingPathComponent(file), encoding: .utf8), file)
    }
  }

  /// The tests that say they cover a rule, in order.
  func covering(_ rule: Int) -> [MarkedTest] {
    rules.filter { $0.value.contains(rule) }.keys.sorted { ($0.file, $0.name) < ($1.file, $1.name) }
  }

  private static func files(below folder: String) throws -> [String] {
    let base = root.appendingPathComponent(folder)
    guard let walk = FileManager.default.enumerator(at: base, includingPropertiesForKeys: [.isRegularFileKey]) else {
      return []
    }
    var found: [String] = []
    for case let url as URL in walk where try url.resourceValues(forKeys: [.isRegularFileKey]).isRegularFile == true {
      let path = String(url.path.dropFirst(root.path.count + 1))
      let name = url.lastPathComponent
      if name.hasPrefix(".") || name.hasSuffix(".md") { continue }
      if [".swift", ".sh", ".py"].contains(where: name.hasSuffix) || !name.contains(".") { found.append(path) }
    }
    return found.sorted()
  }

  /// Marks in a display name, or in a comment after it, belong to the test that was declared last.
  private mutating func read(swift text: String, _ file: String) {
    var current: MarkedTest?
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    for (number, line) in lines.enumerated() {
      if let at = line.firstRange(of: "@Test") {
        var rest = line[at.upperBound...]
        // The name may stand on the line after the parenthesis.
        if rest.drop(while: { $0 == " " }) == "(", number + 1 < lines.count { rest = lines[number + 1] }
        guard let name = Self.literal(rest) else {
          current = nil
          continue
        }
        let test = MarkedTest(file: file, name: name)
        current = test
        rules[test, default: []].formUnion(Self.marks(name))
        if rest.contains(".disabled(") { disabled.insert(test) }
      }
      guard let test = current, let comment = line.firstRange(of: "//") else { continue }
      rules[test, default: []].formUnion(Self.marks(String(line[comment.lowerBound...])))
    }
  }

  private mutating func read(script text: String, _ file: String) {
    for line in text.split(separator: "\n") {
      guard let comment = line.firstRange(of: "# ") else { continue }
      let name = line[comment.upperBound...].trimmingCharacters(in: .whitespaces)
      let marks = Self.marks(name)
      if !marks.isEmpty { rules[MarkedTest(file: file, name: name), default: []].formUnion(marks) }
    }
  }

  /// The first string literal of a line, its escapes undone.
  private static func literal(_ line: Substring) -> String? {
    guard let open = line.firstIndex(of: "\"") else { return nil }
    var text = ""
    var isEscaped = false
    for character in line[line.index(after: open)...] {
      if isEscaped {
        text.append(character)
        isEscaped = false
      } else if character == "\\" {
        isEscaped = true
      } else if character == "\"" {
        return text
      } else {
        text.append(character)
      }
    }
    return nil
  }

  /// The numbers of all `Rnnn` in a text, `R042–R045` counted in full.
  static func marks(_ text: String) -> Set<Int> {
    var found: Set<Int> = []
    for match in text.matches(of: /\bR(\d{3})(?:[–-]R(\d{3}))?(?!\d)/) {
      guard let first = Int(match.1) else { continue }
      let last = match.2.flatMap { Int($0) } ?? first
      if first <= last { found.formUnion(first...last) }
    }
    return found
  }
}
