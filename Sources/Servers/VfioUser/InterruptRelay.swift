internal import HostIO
internal import IOMMUInterface
internal import PCI
internal import Synchronization

/// The interrupts of a PCI device by their numbers (`linux/vfio.h`).
enum VfioInterrupt {
  static let pin: UInt32 = 0
  static let msi: UInt32 = 1
  static let msix: UInt32 = 2
  static let error: UInt32 = 3
  static let request: UInt32 = 4
  static let count: UInt32 = 5
}

/// Where the function's interrupts go: to the eventfds that the client sent for them.
///
/// The client emulates the MSI-X table for its guest, so ours is programmed by the server: the message of vector n
/// carries n. Messages and pins come from queue threads, eventfds from the control thread.
final class InterruptRelay: MessageInterrupts, LineInterrupts {
  private struct State {
    var vectors: [EventFD?] = []
    var pin: EventFD?
    var isAsserted = false
    var sent: UInt64 = 0
    /// Messages of vectors without an eventfd.
    var lost: UInt64 = 0
    /// A pin masks itself when it fires, until the client unmasks it.
    var isPinMasked = false
  }
  private let state = Mutex(State())

  func deliver(_ message: InterruptMessage, from requester: RequesterID) {
    state.withLock { state in
      let vector = Int(message.data)
      if state.vectors.indices.contains(vector), let event = state.vectors[vector] {
        event.signal()
        state.sent += 1
      } else {
        state.lost += 1
      }
    }
  }

  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) {
    state.withLock { state in
      state.isAsserted = asserted
      Self.fire(&state)
    }
  }

  private static func fire(_ state: inout State) {
    guard state.isAsserted, !state.isPinMasked, let pin = state.pin else { return }
    state.isPinMasked = true
    pin.signal()
    state.sent += 1
  }

  /// Vectors and whether the pin have an eventfd, and what was sent so far.
  var counts: (vectors: Int, hasPin: Bool, sent: UInt64, lost: UInt64) {
    state.withLock { ($0.vectors.count { $0 != nil }, $0.pin != nil, $0.sent, $0.lost) }
  }

  /// Sets or takes away the eventfd of a vector.
  func setVector(_ vector: Int, _ event: EventFD?) {
    state.withLock { state in
      while state.vectors.count <= vector { state.vectors.append(nil) }
      state.vectors[vector] = event
    }
  }

  /// Sets or takes away the eventfd of the pin.
  func setPin(_ event: EventFD?) {
    state.withLock { state in
      (state.pin, state.isPinMasked) = (event, false)
      Self.fire(&state)
    }
  }

  func maskPin(_ isMasked: Bool) {
    state.withLock { state in
      state.isPinMasked = isMasked
      Self.fire(&state)
    }
  }

  /// As if the device had fired.
  func trigger(_ index: UInt32, _ vector: Int) {
    state.withLock { state in
      if index == VfioInterrupt.pin {
        state.pin?.signal()
      } else if state.vectors.indices.contains(vector) {
        state.vectors[vector]?.signal()
      }
    }
  }

  /// The client has gone.
  func removeAll() { state.withLock { state in (state.vectors, state.pin, state.isPinMasked) = ([], nil, false) } }
}
