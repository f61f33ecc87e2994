import Foundation

/// `Documentation/rules.md`, the list of rules that the DMA path keeps.
///
/// Sentences and reasons are written in the page by hand; which tests cover a rule is read from the tests, and
/// ``text(_:)`` writes the page of both:
///
///     ## Heading
///     | Rule | What holds | Tests |
///     | R001 | A sentence. | [Folder/FileTests], [Folder/OtherTests] 2 |
///     ## Rules that rest on a reason
///     | R008 | A reason. |
///     [Folder/FileTests]: ../Tests/FolderTests/FileTests.swift
struct RuleTable {
  struct Rule {
    var number: Int
    var heading: String
    var summary: String
    /// Why no test covers it, or not all of it.
    var reason: String?

    var label: String { "R" + String(repeating: "0", count: 3 - String(number).count) + String(number) }
  }

  static let file = MarkedTests.root.appendingPathComponent("Documentation/rules.md")
  private static let reasons = "Rules that rest on a reason"
  var rules: [Rule] = []

  init(_ page: String) {
    var heading = ""
    for line in page.split(separator: "\n") {
      if line.hasPrefix("## ") { heading = String(line.dropFirst(3)) }
      guard let number = line.firstMatch(of: /^\| R(\d{3}) \|/).flatMap({ Int($0.1) }) else { continue }
      let cells = line.split(separator: "|", omittingEmptySubsequences: false).map {
        $0.trimmingCharacters(in: .whitespaces)
      }
      if heading == Self.reasons, let place = rules.firstIndex(where: { $0.number == number }) {
        rules[place].reason = cells[2]
      } else {
        rules.append(Rule(number: number, heading: heading, summary: cells[2]))
      }
    }
  }

  /// The page as it has to be, with the tests there are.
  func text(_ marked: MarkedTests) -> String {
    var out = Self.preface
    var heading = ""
    var files: Set<String> = []
    for rule in rules {
      if rule.heading != heading {
        heading = rule.heading
        out += "\n## \(heading)\n\n| Rule | What holds | Tests |\n|---|---|---|\n"
      }
      let tests = Dictionary(grouping: marked.covering(rule.number), by: \.file)
      files.formUnion(tests.keys)
      var cells = tests.keys.sorted().map { file in
        let count = tests[file]?.count ?? 0
        return "[\(Self.name(file))]" + (count > 1 ? " \(count)" : "")
      }
      if rule.reason != nil { cells.append("[reason](#rules-that-rest-on-a-reason)") }
      out += "| \(rule.label) | \(rule.summary) | \(cells.joined(separator: ", ")) |\n"
    }
    out += "\n## \(Self.reasons)\n\n| Rule | Why there is no test, or none of all of it |\n|---|---|\n"
    for rule in rules { if let reason = rule.reason { out += "| \(rule.label) | \(reason) |\n" } }
    out += "\n"
    for file in files.sorted() { out += "[\(Self.name(file))]: ../\(file)\n" }
    return out
  }

  /// What a file is called in the page: `Tests/DMATests/IOTLBTests.swift` is `DMA/IOTLBTests`.
  static func name(_ file: String) -> String {
    file.replacing(/^(Tests|Scripts)\//, with: "").replacing(/^(\w+?)Tests\//) { "\($0.1)/" }
      .replacing(/\.\w+$/, with: "")
  }

  private static let preface = """
    # The rules of the DMA path

    What must hold for a virtio device that may or may not be behind an IOMMU, a number each. "The bit" is
    VIRTIO_F_ACCESS_PLATFORM.

    A test names the rules it covers, `(R108)`, in its sentence or in a comment below it: search the linked file for the
    number. A number behind a link says how many tests of the file do. `SLUICE_RULES=write swift test --filter RulesTests`
    writes the links from the tests, and the same tests check that they are right; sentences and reasons are written here.

    """
}
