import Examination
import HostIO

/// A back-end that this command starts, as often as it is needed. One thread uses it.
final class BackendCommand: CheckSubject {
  private let command: [String]
  private let socket: String
  private var process: ChildProcess?

  /// `command` is a program and its arguments, which make it listen at `socket`.
  init(_ command: [String], socket: String) {
    self.command = command
    self.socket = socket
  }

  var life: BackendLife {
    switch process?.state {
    case .running: .running
    case .killed(let signal): .killed(signal)
    case .ended(let status): .ended(status)
    case nil: .ended(0)
    }
  }

  private var refusal: HostError?
  /// Why the program could not be started, as a sentence; nil if it could.
  var startFailure: String? { refusal.map { "\(command.first ?? "") cannot be started: \($0.reason)" } }

  func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    if process == nil { try start() }
    return try UnixSocket.connect(to: socket, timeout: timeout)
  }

  func renew() -> Bool {
    do throws(HostError) { try start() } catch { return false }
    return SocketFile.exists(socket)
  }

  /// Starts it, and returns when it listens or has ended.
  private func start() throws(HostError) {
    end()
    SocketFile.remove(socket)
    let new: ChildProcess
    do throws(HostError) { new = try ChildProcess(command) } catch {
      refusal = error
      throw error
    }
    process = new
    // As long as a program may take that reserves memory for itself first.
    let nothing = try EventFD()
    for _ in 0..<6000 where new.state == .running && !SocketFile.exists(socket) {
      _ = try nothing.wait(timeout: .milliseconds(5))
    }
  }

  /// Ends it, if it runs.
  func end() { process?.end() }

  /// The last line it said, for a message about why it is not there; empty if it said nothing.
  var lastWords: String {
    guard let line = process?.lastLine, !line.isEmpty else { return "" }
    return " (its last line: \(line))"
  }
}
