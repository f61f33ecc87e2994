public import HostIO
public import Logging
internal import Synchronization
public import VhostUser
public import Virtio
public import VirtioServing

/// A vhost-user back-end: serves a device to the front-end that connects, one after the other.
///
/// On a listening socket it accepts again when a front-end has gone, for any reason; a connected socket is served until
/// it closes. The device outlives its connections.
public final class VhostUserServer: DeviceServer {
  private let device: any VirtioDevice
  private let socket: InheritedSocket
  private let options: BackendOptions
  private let explain: @Sendable (ServingReport, ExplainRequest.Form) -> String
  private let log: Logger
  private let limited: LimitedLog
  private let stopping: EventFD
  private let report: BackendReport
  private let channel = Mutex<ConfigurationAnnouncer?>(nil)

  /// Serves `device` on a listening or connected socket. Nothing happens before ``run()``.
  ///
  /// The device's configuration changes are passed on to the front-end, so a device belongs to one server.
  ///
  /// - Parameters:
  ///   - facts: what else ``statistics`` are to say about the device; called for each report, on any
  ///     thread.
  ///   - explain: the answer to `sluice explain`, on a thread of the server; without it the answer is JSON, even to
  ///     those who asked for words.
  public init(
    _ device: any VirtioDevice, on socket: InheritedSocket, options: BackendOptions = BackendOptions(), log: Logger,
    facts: @escaping @Sendable () -> [ReportFact] = { [] },
    explain: @escaping @Sendable (ServingReport, ExplainRequest.Form) -> String = { report, _ in report.json }
  ) throws(HostError) {
    self.device = device
    self.socket = socket
    self.options = options
    self.explain = explain
    limited = LimitedLog(log)
    self.log = limited.logger
    stopping = try EventFD()
    report = BackendReport(device, options, facts)
    device.observeConfiguration { [weak self] in self?.channel.withLock { $0 }?.announce() }
  }

  /// Serves `device` on a socket that is made at `path`, and removed with the server. Front-ends may connect at once;
  /// they are served from ``run()`` on.
  ///
  /// - Throws: as `UnixListener`: EADDRINUSE if another socket listens there, EEXIST if the path is something else than
  ///   a socket.
  public convenience init(
    _ device: any VirtioDevice, at path: String, options: BackendOptions = BackendOptions(), log: Logger
  ) throws(HostError) {
    try self.init(device, on: .listening(UnixListener(path: path)), options: options, log: log)
  }

  /// What the back-end is doing. From any thread.
  public var statistics: ServingReport { report.statistics }

  /// Serves until ``stop()``; with a connected socket, or `once`, until the front-end has gone. Blocks.
  ///
  /// - Throws: if this host cannot go on. A front-end's mistakes end its connection, not the server.
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
    let acceptor = try ConnectionAcceptor(listener, peer: "front-end", stopping: stopping, log: log) { form in
      explain(report.statistics, form)
    }
    try acceptor.open(options.name) { () throws(HostError) in
      while let socket = try acceptor.next() {
        guard let session = try begin(on: socket, acceptor) else { continue }
        try serve(session)
        // Connections that say nothing must not keep the descriptors that a front-end passes.
        if session.ranShort { acceptor.makeRoom() }
        if options.once { return }
      }
    }
  }

  /// A session, as soon as this host has the resources; nil after a stop, or when the front-end did not wait.
  private func begin(on socket: UnixSocket, _ acceptor: ConnectionAcceptor) throws(HostError) -> BackendSession? {
    var isTold = false
    while true {
      do throws(HostError) {
        return try BackendSession(device, on: socket, options: options, report: report, log: log)
      } catch {
        guard error.isShortage else { throw error }
        if !isTold { log.warning("the front-end has to wait until this host has what it takes to serve it: \(error)") }
        isTold = true
        acceptor.makeRoom()
        if try stopping.wait(timeout: ConnectionAcceptor.rest) || socket.isHungUp { return nil }
      }
    }
  }

  private func serve(_ socket: UnixSocket) throws(HostError) {
    try serve(try BackendSession(device, on: socket, options: options, report: report, log: log))
  }

  private func serve(_ session: BackendSession) throws(HostError) {
    channel.withLock { $0 = session.announcer }
    defer { channel.withLock { $0 = nil } }
    log.info("front-end connected")
    let reason = try session.run(stop: stopping)
    log.info("front-end gone: \(reason)")
  }

  /// Makes ``run()`` return soon: requests under way are finished first.
  public func stop() { stopping.signal() }
}
