import ArgumentParser
import DeviceCatalog
import Glibc
import HostIO
import Logging
import Virtio
import VirtioServing

/// `sluice serve`: a device for the front-ends that connect.
struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve a device over vhost-user or vfio-user.",
    discussion: """
      Runs in the foreground, one device for each process, until SIGTERM, SIGINT or SIGHUP. It finishes requests under \
      way first; a second signal ends it at once. SIGUSR1 writes the answer of `sluice explain` into the log. When a \
      front-end or client disconnects, the command waits for the next one.
      """,
    subcommands: devices)

  /// The commands of all devices that can be served: those with options of their own, and the rest of the catalogue.
  static let devices: [any DeviceCommand.Type] =
    [ServeBlock.self, ServeNVMe.self]
    + DeviceKind.all.compactMap { kind in
      guard case .optionless(let device, _)? = kind.model else { return nil }
      return command(device)
    }

  private static func command<D: OptionlessDevice>(_ device: D.Type) -> any DeviceCommand.Type {
    ServeOptionless<D>.self
  }
}

/// A command that serves one kind of device.
protocol DeviceCommand: ParsableCommand {
  /// The device's type and its optional features, in the words of vhost-user's conventions for back-end programs.
  static var capabilities: (type: String, features: [String]) { get }
}

extension DeviceCommand {
  /// Prints the answer to `--print-capabilities`.
  static func printCapabilities() {
    let list = capabilities.features.map { "\"\($0)\"" }.joined(separator: ", ")
    StandardStream.output.print("{\n  \"type\": \"\(capabilities.type)\",\n  \"features\": [\(list)]\n}")
  }
}

/// A device to serve, and the facts that `explain` adds for it.
struct Served {
  var device: any VirtioDevice
  var facts: @Sendable () -> [ReportFact] = { [] }
}

/// A server that is about to run, and the socket that it runs on.
struct Service {
  var server: any DeviceServer
  var socket: InheritedSocket
  /// Where the socket is, if it was made here.
  var path: String?
  /// What the server is doing, where it can say so.
  var report: (@Sendable () -> ServingReport)?
}

/// Runs the server that `start` makes until a signal, or until it ends by itself.
///
/// - Parameter start: is given a logger for itself, and one for a server, which limits its own lines.
func serve(
  _ name: String, _ options: ProgramOptions,
  _ start: (_ log: Logger, _ unlimited: Logger) throws -> Service
) throws {
  // Signals are blocked before any thread starts, so that every thread inherits that.
  let signals: SignalFD
  let output: CommandLog
  do {
    signals = try SignalFD([SIGTERM, SIGINT, SIGHUP, SIGUSR1])
    output = try CommandLog(name, format: options.logFormat)
  } catch {
    throw Failure.host("cannot wait for signals: \(error)")
  }
  let unlimited = output.logger(options.logLevel)
  let limited = LimitedLog(unlimited)
  defer {
    limited.settle()
    output.flush()
  }
  let log = limited.logger
  do {
    let service = try start(log, unlimited)
    let server = service.server
    let ended = try EventFD()
    let outcome = Outcome()
    let thread = try WorkerThread(name: "\(name) control") {
      do throws(HostError) { try server.run() } catch { outcome.set("\(error)") }
      ended.signal()
    }
    if let path = service.path { log.info("listening on \(path)") }
    let removeSocket = { if case .listening(let listener) = service.socket { listener.removeFile() } }
    var stop = StopWatch(service, log: log)
    try waitForEnd(of: ended, signals) { signal in
      if signal == SIGUSR1 {
        if let report = service.report { output.report(report()) }
        return
      }
      guard stop.begin(signal) else {
        // What holds a request up may hold the other threads up too: do not wait for them.
        log.warning("a second signal: ending at once, with requests under way")
        removeSocket()
        output.flush()
        _exit(1)
      }
    } whenLate: {
      stop.tell()
    }
    thread.join()
    removeSocket()
    if let sentence = outcome.sentence { throw Failure.host(sentence) }
  } catch let error as HostError {
    throw Failure.host("\(error)")
  }
}

/// Waits until `ended` is signalled. Calls `heard` for each signal meanwhile, and `whenLate` when nothing has happened
/// for three seconds.
private func waitForEnd(
  of ended: EventFD, _ signals: SignalFD, heard: (Int32) -> Void, whenLate: () -> Void
) throws(HostError) {
  let poller = try Poller()
  try poller.add(signals.rawValue, token: 0)
  try poller.add(ended, token: 1)
  var ready = ReadySet()
  var isStopping = false
  while true {
    try poller.wait(into: &ready, timeout: isStopping ? .seconds(3) : nil)
    if ready.count == 0 { whenLate() }
    for i in ready.indices {
      if ready.token(i) == 1 { return }
      while let signal = try signals.next() {
        heard(signal)
        if signal != SIGUSR1 { isStopping = true }
      }
    }
  }
}

/// A stop that was asked for, and what it waits for.
private struct StopWatch {
  let service: Service
  let log: Logger
  private var isStopping = false
  private var isTold = false

  init(_ service: Service, log: Logger) {
    self.service = service
    self.log = log
  }

  /// Begins. False if it has begun already.
  mutating func begin(_ signal: Int32) -> Bool {
    guard !isStopping else { return false }
    isStopping = true
    log.debug("signal \(signal): stopping")
    service.server.stop()
    return true
  }

  /// Logs once what the stop waits for.
  mutating func tell() {
    guard isStopping, !isTold else { return }
    isTold = true
    let waiting = (service.report?().queues ?? []).compactMap { queue -> String? in
      let count = queue.counts.requests &- queue.counts.completions
      return count == 0 ? nil : "\(counted(count, "request")) of virtqueue \(queue.index)"
    }
    let what = waiting.isEmpty ? "its threads to end" : waiting.joined(separator: ", ")
    log.warning(
      "told to stop, and waiting for \(what), which the storage has not answered; a second signal ends at once")
  }
}
