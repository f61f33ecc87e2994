import Foundation

/// QEMU's test protocol over its standard input and output: a command a line, an answer a line.
final class QTestChannel {
  let program: Program
  private var received = Data()
  private static let newline = Data([0x0a])

  init(_ program: Program) { self.program = program }

  /// Sends one command and returns the words after `OK`.
  @discardableResult
  func command(_ line: String) throws(QTestError) -> String { try commands([line])[0] }

  /// Sends many commands at once and returns their answers in order: one round trip for all of them.
  @discardableResult
  func commands(_ lines: [String]) throws(QTestError) -> [String] {
    var answers: [String] = []
    var rest = lines[...]
    // The answers of a bounded number of commands fit into the pipe, so neither side can block the other.
    while !rest.isEmpty {
      let some = rest.prefix(512)
      rest = rest.dropFirst(512)
      do {
        try program.input.fileHandleForWriting.write(contentsOf: Data((some.joined(separator: "\n") + "\n").utf8))
      } catch {
        throw .ended(program: program.name, said: program.said)
      }
      for line in some {
        let answer = try nextLine()
        guard answer == "OK" || answer.hasPrefix("OK ") else { throw .refused(command: line, answer: answer) }
        answers.append(String(answer.dropFirst(3)))
      }
    }
    return answers
  }

  private func nextLine() throws(QTestError) -> String {
    var searched = received.startIndex
    while true {
      if let end = received.range(of: Self.newline, in: searched..<received.endIndex) {
        let line = String(decoding: received[..<end.lowerBound], as: UTF8.self)
        received = Data(received[end.upperBound...])
        if line.hasPrefix("IRQ ") {
          searched = received.startIndex
          continue
        }  // not an answer
        return line
      }
      searched = received.endIndex
      let more = program.output.fileHandleForReading.availableData
      if more.isEmpty {
        _ = program.stop(9)
        throw .ended(program: program.name, said: program.said)
      }
      let offset = searched - received.startIndex
      received.append(more)
      searched = received.startIndex + offset
    }
  }
}
