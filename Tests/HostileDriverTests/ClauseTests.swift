import Foundation
import Testing

@Suite("The list of clauses") struct ClauseTests {
  /// Clauses that the tests of this folder attack, read from their text.
  private func attacked() throws -> Set<String> {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    var found: Set<String> = []
    for file in try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
    where file.lastPathComponent.hasSuffix("Tests.swift") && file.lastPathComponent != "ClauseTests.swift" {
      for match in try String(contentsOf: file, encoding: .utf8).matches(of: /"(\d+(?:\.\d+)+-\d+)"/) {
        found.insert(String(match.1))
      }
    }
    return found
  }

  @Test("Every clause has a test, or a sentence that says why a driver cannot break it")
  func covered() throws {
    let attacked = try attacked()
    for clause in ClauseTable.all {
      if let reason = clause.reason {
        #expect(!attacked.contains(clause.id), "\(clause.id) has both a test and a reason")
        #expect(reason.count >= 40 && reason.hasSuffix("."), "\(clause.id): “\(reason)” is no reason")
      } else {
        #expect(attacked.contains(clause.id), "\(clause.id) has neither a test nor a reason: \(clause.text)")
      }
    }
  }

  @Test("Every clause is there once, in a chapter, and every test names one that exists")
  func unique() throws {
    let ids = ClauseTable.all.map(\.id)
    #expect(Set(ids).count == ids.count)
    for id in ids { #expect(ClauseTable.chapter(of: id) != nil, "\(id)") }
    for id in try attacked() { #expect(ids.contains(id), "\(id) is no clause") }
    let tested = ClauseTable.all.count { $0.reason == nil }
    print("hostile driver: \(ids.count) clauses, \(tested) attacked, \(ids.count - tested) with a reason why not")
  }
}
