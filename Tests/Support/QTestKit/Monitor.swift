import Foundation

/// QEMU's monitor (QMP), over two pipes: what is done to a machine from outside of it. One thread at a time.
public final class Monitor {
  private let input: FileHandle
  private let output: FileHandle
  private var received = Data()
  /// Events received and not taken so far, by name.
  private var events: [String] = []

  /// Makes the pipes, which are there before QEMU is.
  static func makePipes(_ path: String, in scratch: Scratch) throws(QTestError) {
    guard let tool = Program.find("mkfifo") else { throw .missing("mkfifo") }
    let program = try Program(tool, ["\(path).in", "\(path).out"], in: scratch, lifetime: 10)
    // No signal: it ends by itself.
    program.stop(0)
    guard program.exitStatus == 0 else { throw .file("no pipes at \(path): \(program.said)") }
  }

  /// Opens the pipes of a QEMU that runs, and leaves its negotiation.
  init(_ path: String) throws(QTestError) {
    guard let input = FileHandle(forWritingAtPath: "\(path).in"),
      let output = FileHandle(forReadingAtPath: "\(path).out")
    else {
      throw .missing("a monitor at \(path)")
    }
    self.input = input
    self.output = output
    _ = try line()  // its greeting
    try command("qmp_capabilities")
  }

  deinit {
    try? input.close()
    try? output.close()
  }

  /// A command and its arguments, as JSON; waits for its answer.
  public func command(_ name: String, _ arguments: String = "{}") throws(QTestError) {
    do {
      try input.write(contentsOf: Data("{\"execute\":\"\(name)\",\"arguments\":\(arguments)}\n".utf8))
    } catch {
      throw .missing("a monitor that listens")
    }
    while true {
      let line = try line()
      if note(line) { continue }
      guard line.hasPrefix("{\"return\"") else { throw .refused(command: name, answer: line) }
      return
    }
  }

  /// Waits for an event that was not taken before. QEMU's own end ends the wait.
  public func take(_ event: String) throws(QTestError) {
    while true {
      if let place = events.firstIndex(of: event) {
        events.remove(at: place)
        return
      }
      _ = note(try line())
    }
  }

  private func note(_ line: String) -> Bool {
    guard let match = line.firstMatch(of: /"event": "([A-Z_]+)"/) else { return false }
    events.append(String(match.1))
    return true
  }

  private func line() throws(QTestError) -> String {
    while true {
      if let end = received.firstIndex(of: 0x0a) {
        let line = String(decoding: received[..<end], as: UTF8.self)
        received = Data(received[(end + 1)...])
        return line.trimmingCharacters(in: .whitespacesAndNewlines)
      }
      let more = output.availableData
      guard !more.isEmpty else { throw .timedOut(waitingFor: "the monitor") }
      received += more
    }
  }
}
