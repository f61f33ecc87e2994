import Foundation
import Testing

@Suite("Every rule of the DMA path is tested or explained", .serialized)
struct RuleTests {
  let marked: MarkedTests
  let table: RuleTable

  init() throws {
    marked = try MarkedTests()
    var table = try RuleTable()
    if ProcessInfo.processInfo.environment["SLUICE_RULES"] == "write" {
      table.refresh(from: marked)
      try table.text.write(to: RuleTable.file, atomically: true, encoding: .utf8)
    }
    self.table = table
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
    for rule in table.rules where rule.tests.isEmpty {
      guard let reason = rule.reason else {
        Issue.record("\(rule.label) has neither a test nor a reason: \(rule.summary)")
        continue
      }
      #expect(
        reason.count >= 40 && reason.hasSuffix(".") && reason.split(separator: " ").count >= 8,
        "\(rule.label): “\(reason)” is no reason")
    }
    let tested = table.rules.count { !$0.tests.isEmpty }
    let early = table.rules.prefix(142)
    print(
      "rules: \(tested) of \(table.rules.count) have tests; of R001–R142 \(early.count { !$0.tests.isEmpty }) have, \(early.count { $0.tests.isEmpty }) wait for a later floor"
    )
  }

  @Test("Every test in the table exists, is not disabled, and names the rule")
  func exists() {
    for rule in table.rules {
      for test in rule.tests {
        guard let rules = marked.rules[test] else {
          Issue.record("\(rule.label): there is no test “\(test.name)” in \(test.file)")
          continue
        }
        #expect(rules.contains(rule.number), "\(rule.label): “\(test.name)” does not name it")
        #expect(!marked.disabled.contains(test), "\(rule.label): “\(test.name)” is disabled")
      }
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
