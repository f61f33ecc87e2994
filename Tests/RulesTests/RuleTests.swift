import Foundation
import Testing

@Suite("Every rule of the DMA path is tested or explained", .serialized)
struct RuleTests {
  let marked: MarkedTests
  let table: RuleTable
  let page: String

  init() throws {
    marked = try MarkedTests()
    var page = try String(contentsOf: RuleTable.file, encoding: .utf8)
    table = RuleTable(page)
    if ProcessInfo.processInfo.environment["SLUICE_RULES"] == "write" {
      page = table.text(marked)
      try page.write(to: RuleTable.file, atomically: true, encoding: .utf8)
    }
    self.page = page
  }

  @Test("The table lists rules 1 to 180, each once and with words of its own")
  func complete() {
    #expect(table.rules.map(\.number) == Array(1...180))
    for rule in table.rules {
      #expect(rule.summary.count >= 20 && rule.summary.hasSuffix("."), "\(rule.label): \(rule.summary)")
    }
  }

  @Test("A rule has a test, or a sentence that says why it belongs to a later floor")
  func covered() {
    let tested = table.rules.filter { !marked.covering($0.number).isEmpty }.map(\.number)
    for rule in table.rules where !tested.contains(rule.number) && rule.reason == nil {
      Issue.record("\(rule.label) has neither a test nor a reason: \(rule.summary)")
    }
    for rule in table.rules {
      guard let reason = rule.reason else { continue }
      #expect(
        reason.count >= 40 && reason.hasSuffix(".") && reason.split(separator: " ").count >= 8,
        "\(rule.label): “\(reason)” is no reason")
    }
    print("rules: \(tested.count) of \(table.rules.count) have tests; of R001–R142 \(tested.count { $0 <= 142 }) have")
  }

  @Test("Every test in the table exists, is not disabled, and names the rule")
  func exists() {
    let (found, expected) = (page.split(separator: "\n"), table.text(marked).split(separator: "\n"))
    for line in expected.difference(from: found) {
      switch line {
      case .insert(_, let text, _): Issue.record("the page lacks: \(text)")
      case .remove(_, let text, _): Issue.record("the page says, and no test does: \(text)")
      }
    }
    for test in marked.disabled {
      #expect(marked.rules[test]?.isEmpty != false, "“\(test.name)” names rules and is disabled")
    }
  }

  @Test("No test names a rule that does not exist")
  func known() {
    for (test, rules) in marked.rules { #expect(rules.allSatisfy { 1...180 ~= $0 }, "\(test.file): \(test.name)") }
  }

  @Test("Marks are found in names, in comments and in ranges")
  func marks() {
    #expect(MarkedTests.marks("an update of size 0 (R108), R042–R044; not R1080 or XR109") == [108, 42, 43, 44])
    #expect(MarkedTests.marks("nothing here").isEmpty)
  }
}
