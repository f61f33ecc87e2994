import HostIO
import Virtio
import VirtioTestKit

@testable import VhostUserBackend

/// A back-end on a thread of its own, and the front-end's end of its socket.
final class BackendThread {
  let server: VhostUserServer
  private var end: UnixSocket?
  private let thread: WorkerThread

  init(_ device: any VirtioDevice, options: BackendOptions = BackendOptions()) throws {
    let (near, far) = try UnixSocket.pair()
    let server = try VhostUserServer(device, on: .connected(far), options: options, log: .silent)
    (self.server, end) = (server, near)
    thread = try WorkerThread(name: "back-end") { try? server.run() }
  }

  var socket: UnixSocket { end! }

  /// Closes the socket, with what is unread in it.
  func hangUp() { end = nil }

  /// Waits until it has ended by itself.
  func join() { thread.join() }
}
