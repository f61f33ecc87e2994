public import HostIO
public import Logging
public import PCI
public import VirtioServing

/// A vfio-user server: a PCI function for the client that connects, one after the other.
///
/// The function reaches the client's memory through DMA_MAP's mappings alone, whatever the function negotiates: the
/// client's IOMMU decides. Its state outlives a client, as the protocol asks; mappings and interrupts go with it.
public final class VfioUserServer: DeviceServer {
  private let hosted: HostedFunction
  private let socket: InheritedSocket
  private let once: Bool
  private let limited: LimitedLog
  private let log: Logger
  private let stopping: EventFD

  /// Serves the function that `make` makes, on a listening or connected socket. Nothing happens before ``run()``.
  ///
  /// - Parameters:
  ///   - once: ends when the first client has gone.
  ///   - make: makes the function with what it reaches memory and interrupts through.
  public init<F: PCIFunction>(
    on socket: InheritedSocket, once: Bool = false, log: Logger, _ make: (BusMaster) throws -> F
  ) throws {
    hosted = try HostedFunction(make)
    self.socket = socket
    self.once = once
    limited = LimitedLog(log)
    self.log = limited.logger
    stopping = try EventFD()
  }

  /// Serves until ``stop()``; with a connected socket, or `once`, until the client has gone. Blocks.
  ///
  /// - Throws: if this host cannot go on. A client's mistakes end its connection, not the server.
  public func run() throws(HostError) {
    defer { limited.settle() }
    switch socket {
    case .connected(let socket): try serve(socket)
    case .listening(let listener):
      while try !stopping.wait(timeout: .zero) {
        guard let socket = try listener.accept(timeout: nil, cancel: stopping) else { continue }
        try serve(socket)
        if once { return }
      }
    }
  }

  private func serve(_ socket: UnixSocket) throws(HostError) {
    log.info("client connected")
    let session = VfioSession(hosted, socket, log)
    let reason = try session.run(stop: stopping)
    log.info("client gone: \(reason)")
  }

  /// Makes ``run()`` return soon. From any thread.
  public func stop() { stopping.signal() }
}
