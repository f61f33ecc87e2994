public import IOMMUInterface
import Synchronization

/// Where messages of functions go. Called on queue threads and under the function's MSI-X lock: must not wait for
/// either, and must not call back.
public protocol MessageInterrupts: Sendable {
  /// A function wrote a message.
  func deliver(_ message: InterruptMessage, from requester: RequesterID)
}

/// Where interrupt pins of devices on the root bus go. Called on any thread, under a lock of the bus: must not call
/// back.
public protocol LineInterrupts: Sendable {
  /// A pin of a device changed its level; pins of functions behind bridges appear at the bridge's device.
  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool)
}

/// A function's interrupt pin: its level, and whether software lets it be asserted.
///
/// The wish and the permission come from different threads; the pin always shows both.
public final class INTx: Sendable {
  private struct State {
    var isWanted = false
    var isDisabled = false
  }
  private let state = Mutex(State())
  private let set: @Sendable (Bool) -> Void

  /// - Parameter set: drives the pin; called under a lock, only when the level changes.
  public init(_ set: @escaping @Sendable (Bool) -> Void) { self.set = set }

  /// A pin of the function that `master` belongs to.
  public convenience init(_ pin: PCIInterruptPin, of master: BusMaster) { self.init { master.set(pin, asserted: $0) } }

  /// Whether the function wants it asserted: the interrupt status bit.
  public var isWanted: Bool { state.withLock { $0.isWanted } }

  /// Sets whether the function wants it asserted.
  public func setWanted(_ isWanted: Bool) { change { $0.isWanted = isWanted } }

  /// The interrupt disable bit of the command register.
  func setDisabled(_ isDisabled: Bool) { change { $0.isDisabled = isDisabled } }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      let old = state.isWanted && !state.isDisabled
      body(&state)
      let new = state.isWanted && !state.isDisabled
      if new != old { set(new) }
    }
  }
}

/// The pins of the devices on the root bus: each asserted while any function that is wired to it asserts.
final class InterruptWires: Sendable {
  private struct Pin: Hashable {
    var device: UInt8
    var pin: PCIInterruptPin
  }
  private let asserting = Mutex<[Pin: Set<Int>]>([:])
  private let target: (any LineInterrupts)?

  init(_ target: (any LineInterrupts)?) { self.target = target }

  /// - Parameter path: the device numbers from the function's own bus up to the root bus.
  func set(_ pin: PCIInterruptPin, asserted: Bool, path: [UInt8], by function: Int) {
    guard let device = path.last else { return }
    let swizzled = path.dropLast().reduce(pin) { $0.swizzled(by: $1) }
    change(Pin(device: device, pin: swizzled)) { functions in
      if asserted { functions.insert(function) } else { functions.remove(function) }
    }
  }

  /// A function is gone.
  func release(_ function: Int) {
    for pin in asserting.withLock({ Array($0.keys) }) { change(pin) { _ = $0.remove(function) } }
  }

  private func change(_ pin: Pin, _ body: (inout Set<Int>) -> Void) {
    asserting.withLock { asserting in
      let old = asserting[pin] ?? []
      var new = old
      body(&new)
      asserting[pin] = new.isEmpty ? nil : new
      if new.isEmpty != old.isEmpty { target?.set(pin.pin, ofDevice: pin.device, asserted: !new.isEmpty) }
    }
  }
}
