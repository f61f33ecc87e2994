public import HostIO

/// What became of a server's process.
public enum BackendLife: Hashable, Sendable {
  /// It runs.
  case running
  /// It ended by itself, with this status.
  case ended(Int32)
  /// This signal killed it.
  case killed(Int32)
  /// It was started elsewhere: its state is not known here.
  case unknown
}

/// The server under examination. One thread uses it.
public protocol CheckSubject: AnyObject {
  /// Connects to it, once; ENOENT and ECONNREFUSED mean that there is no listener.
  func connect(timeout: Duration) throws(HostError) -> UnixSocket
  /// What its process is doing.
  var life: BackendLife { get }
  /// Makes it be there again: ends what is left of it and starts it anew. False if that is not possible.
  func renew() -> Bool
}

extension CheckSubject {
  /// Before a connection is tried again: starts a server that ended with the last one, if that is its design.
  package func getReady(endsWithConnection: Bool) throws(Finding) {
    switch life {
    case .killed(let signal): throw .broken("\(name(ofSignal: signal)) killed it")
    case .ended where endsWithConnection: _ = renew()
    case .ended(let status): throw .broken("its process ended with status \(status)")
    case .running, .unknown: pause(.milliseconds(5))
    }
  }
}

/// A server that was started elsewhere, known by its socket.
public final class SocketSubject: CheckSubject {
  private let path: String

  /// The server that listens at `path`.
  public init(path: String) { self.path = path }

  public func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    try UnixSocket.connect(to: path, timeout: timeout)
  }
  public var life: BackendLife { .unknown }
  public func renew() -> Bool { false }
}

/// Waits without anything to wait for: for something that must not happen.
package func pause(_ time: Duration) {
  guard let nothing = try? EventFD() else { return }
  _ = try? nothing.wait(timeout: time)
}
