import DriverDMA
import HostIO
import IOMMUInterface
import Logging
import PCI
import Synchronization
import VirtioIOMMU

/// All events that the platform and the log get from a device.
final class InterruptLog: MessageInterrupts, LineInterrupts {
  private let stops = Mutex(0)
  private let changed: EventFD
  /// How long an answer may take: much longer than it does, on a machine that is busy with other things.
  let patience: Duration

  init(patience: Duration) throws {
    self.patience = patience
    changed = try EventFD()
  }

  /// Queues that the device gave up.
  var stopped: Int { stops.withLock { $0 } }
  var log: Logger { Logger(label: "hostile") { _ in Handler(watch: self) } }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) { changed.signal() }
  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) { changed.signal() }
  func lineChanged() { changed.signal() }

  /// Waits until `condition` holds; checks it at each event, and every millisecond for changes without an event.
  func wait(_ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + patience
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      if (try? changed.wait(timeout: .milliseconds(1))) == true { _ = try? changed.drain() }
    }
    return true
  }

  private struct Handler: LogHandler {
    let watch: InterruptLog
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.warning
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
      let text = event.message.description
      if text.contains(" stopped until the driver resets") || text.contains(" cannot start: ") {
        watch.stops.withLock { $0 += 1 }
      }
      watch.changed.signal()
    }
  }
}
