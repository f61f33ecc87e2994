public import DriverDMA
internal import HostIO
public import IOMMUInterface
public import PCI
import Synchronization
internal import VirtioTestKit

/// Messages, pins and lines as the platform sees them; each arrival wakes a test that waits.
public final class InterruptLog: MessageInterrupts, LineInterrupts {
  public struct Message: Hashable, Sendable {
    public var address: UInt64
    public var data: UInt32
    public var requester: RequesterID

    public init(address: UInt64, data: UInt32, requester: RequesterID) {
      self.address = address
      self.data = data
      self.requester = requester
    }
  }
  private struct State {
    var messages: [Message] = []
    /// By device and name.
    var pins: Set<String> = []
    var isLineAsserted = false
    var edges = 0
  }
  private let state = Mutex(State())
  private let changed: EventFD
  /// How long a test waits: much longer than an answer takes, on a machine that is busy with other things.
  public let patience: Duration

  public init(patience: Duration = .seconds(20)) throws {
    self.patience = patience
    changed = try EventFD()
  }

  public var messages: [Message] { state.withLock { $0.messages } }
  /// Data of messages, in order.
  public var data: [UInt32] { messages.map(\.data) }
  /// The pins that are asserted, as "device pin".
  public var asserted: [String] { state.withLock { $0.pins.sorted() } }
  /// Whether a pin of a device is asserted.
  public func isAsserted(_ device: UInt8) -> Bool { asserted.contains { $0.hasPrefix("\(device) ") } }
  /// The line of a device on a board.
  public var isLineAsserted: Bool { state.withLock { $0.isLineAsserted } }
  /// How often the line was asserted.
  public var edges: Int { state.withLock { $0.edges } }

  public func deliver(_ message: InterruptMessage, from requester: RequesterID) {
    state.withLock {
      $0.messages.append(Message(address: message.address, data: message.data, requester: requester))
    }
    changed.signal()
  }
  public func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) {
    let name = "\(device) \(pin)"
    state.withLock { if asserted { $0.pins.insert(name) } else { $0.pins.remove(name) } }
    changed.signal()
  }
  public func setLine(_ isAsserted: Bool) {
    state.withLock { state in
      state.isLineAsserted = isAsserted
      if isAsserted { state.edges += 1 }
    }
    changed.signal()
  }

  /// Something else happened that a test may wait for.
  public func signal() { changed.signal() }

  /// Waits until `condition` holds, looking whenever something arrives.
  public func wait(_ condition: () throws -> Bool) rethrows -> Bool {
    if try eventually(within: patience, on: changed, every: patience, condition) { return true }
    return try condition()
  }

  /// Waits until `condition` holds, looking every millisecond too for what nothing tells of.
  public func poll(_ condition: () throws -> Bool) rethrows -> Bool {
    try eventually(within: patience, on: changed, condition)
  }

  /// Lets a millisecond pass, or less if something arrives.
  public func pause() {
    if (try? changed.wait(timeout: .milliseconds(1))) == true { _ = try? changed.drain() }
  }

  /// For drivers: so many looks, each after something arrived or a millisecond has passed.
  public var bounded: BoundedWait { BoundedWait(attempts: 20_000) { self.pause() } }
}
