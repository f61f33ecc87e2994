import ArgumentParser
import Glibc
import HostIO
import Logging
import VhostUser
import Virtio
import VirtioDevices

/// `sluice serve`: a device to whoever connects.
struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve a device over vhost-user.",
    discussion: """
      Runs in the foreground, one device a process, until SIGTERM, SIGINT or SIGHUP; requests under way are finished first. When \
      a front-end disconnects, the next one is waited for. `sluice explain` asks a running one what it is doing.
      """,
    subcommands: [ServeBlock.self, ServeEntropy.self])
}

/// A command that serves one kind of device.
protocol DeviceCommand: ParsableCommand {
  /// What programs that start back-ends call the kind, and which of the options they know for it are there.
  static var capabilities: (type: String, features: [String]) { get }
}

extension DeviceCommand {
  /// Prints the answer to `--print-capabilities`.
  static func printCapabilities() {
    let list = capabilities.features.map { "\"\($0)\"" }.joined(separator: ", ")
    StandardStream.output.print("{\n  \"type\": \"\(capabilities.type)\",\n  \"features\": [\(list)]\n}")
  }
}

/// Serves a device until a signal or the end of the last front-end.
///
/// `makeDevice` comes first and the socket last, so that a mistake leaves nothing behind.
func serve(_ name: String, _ options: SocketOptions, _ makeDevice: (Logger) throws -> any VirtioDevice) throws {
  let log = options.logLevel.logger(name)
  // Signals are blocked before any thread starts, so that every thread inherits that.
  let signals: SignalFD
  do { signals = try SignalFD([SIGTERM, SIGINT, SIGHUP]) } catch { throw Failure.host("signals cannot be waited for: \(error)") }
  let device = try makeDevice(log)
  let socket = try options.open()
  do {
    var backend = BackendOptions(name: name, accessPlatform: options.platform.policy, translations: options.translations.policy, once: options.once)
    backend.offersPackedRings = !options.noPacked
    let server = try VhostUserServer(device, on: socket, options: backend, log: log)
    let ended = try EventFD()
    let outcome = Outcome()
    let thread = try WorkerThread(name: "\(name) control") {
      do { try server.run() } catch { outcome.set("\(error)") }
      ended.signal()
    }
    if let path = options.socketPath { log.info("listening on \(path)") }
    let poller = try Poller()
    try poller.add(signals.rawValue, token: 0)
    try poller.add(ended, token: 1)
    var ready = ReadySet()
    waiting: while true {
      try poller.wait(into: &ready)
      for i in ready.indices {
        if ready.token(i) == 1 { break waiting }
        if let signal = try signals.next() {
          log.debug("signal \(signal): stopping")
          server.stop()
        }
      }
    }
    thread.join()
    if case .listening(let listener) = socket { listener.removeFile() }
    if let sentence = outcome.sentence { throw Failure.host(sentence) }
  } catch let error as HostError {
    throw Failure.host("\(error)")
  }
}
