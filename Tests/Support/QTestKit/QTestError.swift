/// Why a session with QEMU could not go on. A test lets it fall through: the text says what happened.
public enum QTestError: Error, CustomStringConvertible, Sendable {
  /// A program could not be started.
  case cannotStart(program: String, why: String)
  /// The other process went away (or was killed by the session's deadline); what it had written to its error output.
  case ended(program: String, said: String)
  /// QEMU did not accept a command of the qtest protocol.
  case refused(command: String, answer: String)
  /// Something that had to happen did not happen in time.
  case timedOut(waitingFor: String)
  /// The machine is not what the test asked for: a capability, a register or a device is missing.
  case missing(String)
  /// A file could not be prepared or read back.
  case file(String)

  public var description: String {
    switch self {
    case .cannotStart(let program, let why): "\(program) could not be started: \(why)"
    case .ended(let program, let said): "\(program) ended; it said: \(said.isEmpty ? "nothing" : said)"
    case .refused(let command, let answer): "QEMU refused `\(command.prefix(80))`: \(answer.prefix(200))"
    case .timedOut(let what): "no \(what) in time"
    case .missing(let what): "missing: \(what)"
    case .file(let what): what
    }
  }
}
