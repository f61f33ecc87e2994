import Glibc
import Synchronization

/// What became of an attack.
enum Verdict: String, Hashable, Sendable, CaseIterable {
  /// The device carries on, correctly.
  case pass = "PASS"
  /// The request, or the driver, is refused: an error status, FEATURES_OK that does not stick, DEVICE_NEEDS_RESET.
  case reject = "REJECT"
  /// No answer, or no correct one after a reset.
  case wedged = "WEDGED"
  /// A byte was touched that should not be, or the device spins.
  case fail = "FAIL"
}

/// All verdicts of a run; a summary by chapter is printed when the process ends.
final class Results: Sendable {
  static let shared = Results()
  private let entries = Mutex<[(clause: String, transport: Transport, verdict: Verdict)]>([])

  private init() {
    atexit {
      // The last thing a test run says.
      print(Results.shared.summary)
      fflush(nil)
    }
  }

  func record(_ clause: String, _ transport: Transport, _ verdict: Verdict) {
    entries.withLock { $0.append((clause, transport, verdict)) }
  }

  /// A line for each chapter and transport, and one for all.
  var summary: String {
    let entries = entries.withLock { $0 }
    func counts(_ part: [(clause: String, transport: Transport, verdict: Verdict)]) -> String {
      Verdict.allCases.map { verdict in "\(verdict.rawValue) \(part.count { $0.verdict == verdict })" }.joined(
        separator: ", ")
    }
    var lines: [String] = []
    for chapter in ClauseTable.chapters {
      let part = entries.filter { ClauseTable.chapter(of: $0.clause) == chapter }
      if !part.isEmpty {
        lines.append(
          "hostile driver: §\(chapter): \(Set(part.map(\.clause)).count) clauses, \(part.count) attacks: \(counts(part))"
        )
      }
    }
    lines.append(
      "hostile driver: all: \(Set(entries.map(\.clause)).count) clauses, \(entries.count) attacks: \(counts(entries))")
    return lines.joined(separator: "\n")
  }
}
