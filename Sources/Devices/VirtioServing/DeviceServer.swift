/// Something that serves a device to its peers until it is stopped.
public protocol DeviceServer: Sendable {
  /// Serves until ``stop()`` or until there is nothing more to serve. Blocks; call it on a thread of its own.
  func run() throws
  /// Makes ``run()`` return soon. From any thread.
  func stop()
}
