import Examination
import Foundation
import Testing
import VhostUserCheck

@Suite("Which rules are checked from outside") struct RuleCoverageTests {
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
  private static let page = root.appendingPathComponent("Documentation/check.md")
  private static let marks = (
    start: "<!-- rules: written by SLUICE_CHECKS=write swift test --filter RuleCoverageTests -->\n",
    end: "<!-- end of rules -->"
  )

  /// The checks of each rule, in their order.
  private static let covered: [Int: [String]] = {
    var list: [Int: [String]] = [:]
    for check in CheckRun.all {
      for match in "\(check.rule) \(check.sentence)".matches(of: /\bR(\d{3})\b/) {
        list[Int(match.1) ?? 0, default: []].append(check.name)
      }
    }
    for (rule, names) in RuleCoverage.also {
      list[rule, default: []] += names.filter { !(list[rule] ?? []).contains($0) }
    }
    return list
  }()

  @Test("Every rule from R001 to R142 has a check, or a reason why a front-end cannot see it")
  func complete() {
    for rule in 1...142 {
      let (checks, reason) = (Self.covered[rule], RuleCoverage.unseen[rule])
      #expect((checks == nil) != (reason == nil), "rule \(rule): \(checks ?? []), \(reason ?? "no reason")")
    }
    #expect(Self.covered.keys.allSatisfy { 1...142 ~= $0 } && RuleCoverage.unseen.keys.allSatisfy { 1...142 ~= $0 })
    let names = Set(CheckRun.all.map(\.name))
    for (rule, checks) in RuleCoverage.also { #expect(names.isSuperset(of: checks), "rule \(rule)") }
  }

  @Test("The list in the documentation is what the checks say")
  func documented() throws {
    var sentences: [Int: String] = [:]
    for line in try String(contentsOf: Self.root.appendingPathComponent("Documentation/rules.md"), encoding: .utf8)
      .split(separator: "\n")
    {
      guard let match = line.firstMatch(of: /^\| R(\d{3}) \| ([^|]*) \|/), let number = Int(match.1) else { continue }
      // The page lists some rules once more, with the reason why no test covers them.
      sentences[number] = sentences[number] ?? String(match.2)
    }
    var list = "| rule | what holds | checks, or why there is none |\n|---|---|---|\n"
    for rule in 1...142 {
      let label = "R" + String(repeating: "0", count: 3 - String(rule).count) + String(rule)
      let checks = Self.covered[rule].map { $0.map { "`\($0)`" }.joined(separator: ", ") }
      list += "| \(label) | \(sentences[rule] ?? "") | \(checks ?? RuleCoverage.unseen[rule] ?? "") |\n"
    }
    let text = try String(contentsOf: Self.page, encoding: .utf8)
    let start = try #require(text.range(of: Self.marks.start)).upperBound
    let end = try #require(text.range(of: Self.marks.end)).lowerBound
    if ProcessInfo.processInfo.environment["SLUICE_CHECKS"] == "write" {
      try text.replacingCharacters(in: start..<end, with: list).write(to: Self.page, atomically: true, encoding: .utf8)
    } else {
      #expect(text[start..<end] == list, "SLUICE_CHECKS=write swift test --filter RuleCoverageTests writes it anew")
    }
  }
}
