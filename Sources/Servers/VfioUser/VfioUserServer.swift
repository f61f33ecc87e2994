internal import DMA
public import HostIO
public import Logging
public import PCI
public import VirtioServing

/// A vfio-user server: a PCI function for the client that connects, one after the other.
///
/// The function reaches the client's memory through DMA_MAP's mappings alone, whatever the function negotiates: the
/// client's IOMMU decides. Its state outlives a client, as the protocol asks; mappings and interrupts go with it.
public final class VfioUserServer: DeviceServer {
  /// Where clients connect.
  public let socket: InheritedSocket
  private let hosted: HostedFunction
  private let name: String
  private let once: Bool
  private let limited: LimitedLog
  private let log: Logger
  private let stopping: EventFD
  private let report: VfioUserReport
  private let explain: @Sendable (ServingReport, ExplainRequest.Form) -> String

  /// Serves the function that `make` makes, on a listening or connected socket. Nothing happens before ``run()``.
  ///
  /// - Parameters:
  ///   - socket: asked for when the function is there, so that one that cannot be made leaves no socket behind.
  ///   - name: what threads and reports call the device.
  ///   - doorbells: whether a client may map the function's doorbells, if the function has them in one place.
  ///   - once: ends when the first client has gone.
  ///   - describe: enters what is known of the function into a report; called for each, on any thread.
  ///   - explain: the answer to `sluice explain`, on a thread of the server; without it the answer is JSON, even to
  ///     those who asked for words.
  ///   - make: makes the function with what it reaches memory and interrupts through.
  public init<F: PCIFunction>(
    on socket: @autoclosure () throws -> InheritedSocket, name: String = "device", once: Bool = false,
    doorbells: DoorbellPolicy = .messages, log: Logger,
    describe: @escaping @Sendable (F, inout ServingReport) -> Void = { _, _ in },
    explain: @escaping @Sendable (ServingReport, ExplainRequest.Form) -> String = { report, _ in report.json },
    _ make: (BusMaster) throws -> F
  ) throws {
    let limited = LimitedLog(log)
    let log = limited.logger
    var made: F?
    let refused: @Sendable (DMAFault) -> Void = { log.warning("access refused: \($0)") }
    let hosted = try HostedFunction(doorbells: doorbells, refused: refused) { master in
      let function = try make(master)
      made = function
      return function
    }
    self.hosted = hosted
    report = VfioUserReport(name, hosted) { [made] report in
      if let made { describe(made, &report) }
    }
    self.name = name
    self.once = once
    self.limited = limited
    self.log = log
    self.explain = explain
    stopping = try EventFD()
    self.socket = try socket()
  }

  /// What the server is doing. From any thread.
  public var statistics: ServingReport { report.statistics }

  /// Serves until ``stop()``; with a connected socket, or `once`, until the client has gone. Blocks.
  ///
  /// - Throws: if this host cannot go on. A client's mistakes end its connection, not the server.
  public func run() throws(HostError) {
    defer { limited.settle() }
    switch socket {
    case .connected(let socket): try serve(socket)
    case .listening(let listener): try serve(listener)
    }
  }

  private func serve(_ listener: UnixListener) throws(HostError) {
    let report = report
    let explain = explain
    let acceptor = try ConnectionAcceptor(listener, peer: "client", stopping: stopping, log: log) { form in
      explain(report.statistics, form)
    }
    try acceptor.open(name) { () throws(HostError) in
      while let socket = try acceptor.next() {
        try serve(socket)
        if once { return }
      }
    }
  }

  private func serve(_ socket: UnixSocket) throws(HostError) {
    report.sessionBegan()
    log.info("client connected")
    let session = VfioSession(hosted, socket, log)
    let reason: String
    do throws(HostError) { reason = try session.run(stop: stopping) } catch {
      report.sessionEnded("\(error)")
      throw error
    }
    report.sessionEnded([VfioSession.closed, VfioSession.stopped].contains(reason) ? nil : reason)
    log.info("client gone: \(reason)")
  }

  /// Makes ``run()`` return soon. From any thread.
  public func stop() { stopping.signal() }
}
