import Foundation

/// `Rules.md`, the list of rules that the DMA path keeps.
///
///     ## Heading
///     | Rule | What holds | Where that is tested, or why not yet |
///     |---|---|---|
///     | R001 | … | `Tests/…/File.swift` name of a test <br> `…` … |
///     | R008 | … | Later: … |
struct RuleTable {
  struct Rule {
    var number: Int
    var heading: String
    var summary: String
    var tests: [MarkedTest] = []
    /// Why it belongs to a later floor.
    var reason: String?

    var label: String { "R" + String(repeating: "0", count: 3 - String(number).count) + String(number) }
  }

  static let file = MarkedTests.root.appendingPathComponent("Tests/RulesTests/Rules.md")
  var rules: [Rule] = []

  init() throws {
    var heading = ""
    for line in try String(contentsOf: Self.file, encoding: .utf8).split(separator: "\n") {
      if line.hasPrefix("## ") { heading = String(line.dropFirst(3)) }
      guard line.hasPrefix("| R"), let number = line.firstMatch(of: /^\| R(\d{3}) \|/).flatMap({ Int($0.1) }) else {
        continue
      }
      let cells = line.split(separator: "|", omittingEmptySubsequences: false).map {
        $0.trimmingCharacters(in: .whitespaces)
      }
      guard cells.count == 5 else { continue }
      var rule = Rule(number: number, heading: heading, summary: cells[2])
      for part in cells[3].components(separatedBy: "<br>").map({ $0.trimmingCharacters(in: .whitespaces) })
      where !part.isEmpty {
        if part.hasPrefix("Later:") {
          rule.reason = String(part.dropFirst("Later:".count)).trimmingCharacters(in: .whitespaces)
        } else if part.hasPrefix("`"), let end = part.dropFirst().firstIndex(of: "`") {
          let name = part[part.index(after: end)...].trimmingCharacters(in: .whitespaces)
          rule.tests.append(
            MarkedTest(file: String(part[part.index(after: part.startIndex)..<end]), name: Self.unescaped(name)))
        } else {
          rule.tests.append(MarkedTest(file: "", name: part))
        }
      }
      rules.append(rule)
    }
  }

  /// Takes over what the tests say of themselves.
  mutating func refresh(from marked: MarkedTests) {
    for i in rules.indices { rules[i].tests = marked.covering(rules[i].number) }
  }

  var text: String {
    var out = Self.preface
    var heading = ""
    for rule in rules {
      if rule.heading != heading {
        heading = rule.heading
        out += "\n## \(heading)\n| Rule | What holds | Where that is tested, or why not yet |\n|---|---|---|\n"
      }
      var parts = rule.tests.map { "`\($0.file)` \(Self.escaped($0.name))" }
      if let reason = rule.reason { parts.append("Later: \(reason)") }
      out += "| \(rule.label) | \(rule.summary) | \(parts.joined(separator: " <br> ")) |\n"
    }
    return out
  }

  private static let preface = """
    # The rules of the DMA path

    What must hold for a virtio device that may or may not be behind an IOMMU, a number each. `RulesTests` checks that every rule has a test that exists and
    names it, or the reason why it belongs to a later floor. The last column is written by `SLUICE_RULES=write swift test --filter RulesTests` from the tests: a test names its rules in its
    display name, `(R108)`, or in a comment. "The bit" is VIRTIO_F_ACCESS_PLATFORM.

    """

  private static func escaped(_ name: String) -> String {
    name.replacing("|", with: "&#124;").replacing("<", with: "&lt;")
  }
  private static func unescaped(_ name: String) -> String {
    name.replacing("&#124;", with: "|").replacing("&lt;", with: "<")
  }
}
