public import HostIO
public import SocketMessages
internal import VhostUser

/// Why a front-end could not do what it was asked to.
///
/// Wrong input of a back-end is handled here and never traps.
public enum FrontendError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A system call of ours failed.
  case host(HostError)
  /// Guest memory could not be made or changed.
  case memory(String)
  /// The back-end broke the protocol; the connection is given up.
  case violation(ProtocolError)
  /// The back-end answered the named request with a failure, its code a number that is not 0.
  case refused(String, code: UInt64)
  /// Something that was not negotiated is needed for the named request.
  case notNegotiated(String, needs: String)
  /// No answer to the named request in time.
  case timedOut(String)
  /// The back-end closed the connection, or it was given up, before the named request was answered.
  case closed(String)
  /// The front-end was asked for something that cannot be: half a sentence.
  case misuse(String)

  public var description: String {
    switch self {
    case .host(let error): "\(error)"
    case .memory(let what): what
    case .violation(let error): "the back-end broke the protocol: \(error)"
    case .refused(let request, let code): "the back-end refused \(request) with \(code)"
    case .notNegotiated(let request, let needs): "\(request) needs \(needs), which was not negotiated"
    case .timedOut(let request): "the back-end did not answer \(request) in time"
    case .closed(let request): "the connection ended before \(request) was answered"
    case .misuse(let what): what
    }
  }
}
