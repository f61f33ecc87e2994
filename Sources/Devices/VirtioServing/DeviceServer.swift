public import HostIO

/// Something that serves a device to its peers until it is stopped.
public protocol DeviceServer: Sendable {
  /// Serves until ``stop()`` or until there is nothing more to serve. Blocks; call it on a thread of its own.
  ///
  /// - Throws: if this host cannot go on. A peer's mistakes end its connection, not the server.
  func run() throws(HostError)
  /// Makes ``run()`` return soon. From any thread.
  func stop()
}
