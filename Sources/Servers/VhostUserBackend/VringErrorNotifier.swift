internal import HostIO
internal import Synchronization
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// Notifies the front-end of broken virtqueues: through the descriptor of SET_VRING_ERR, or in band, and in the device
/// status. Queue threads call it; nothing here waits.
final class VringErrorNotifier: DeviceEvents {
  private struct State {
    var errors: [Int: EventFD] = [:]
    var isInBand = false
    var broken: Set<Int> = []
  }
  private let state = Mutex(State())
  private let channel: BackendChannel

  private let kicked: EventFD

  /// `kicked` is signalled by the second kick of each queue.
  init(channel: BackendChannel, kicked: EventFD) {
    self.channel = channel
    self.kicked = kicked
  }

  func secondKick(_ index: Int) { kicked.signal() }

  func needsReset(_ index: Int, _ error: QueueError) { broke(index) }

  /// Says once that virtqueue `index` does not work. False if that was said already.
  @discardableResult func broke(_ index: Int) -> Bool {
    let (isNew, event, isInBand) = state.withLock { state in
      (state.broken.insert(index).inserted, state.errors[index], state.isInBand)
    }
    guard isNew else { return false }
    if let event {
      event.signal()
    } else if isInBand {
      _ = channel.send(.vringError(VringState(index: UInt32(index), number: 0)), awaiting: .nothing)
    }
    return true
  }

  /// The descriptor to signal for virtqueue `index`, or none.
  func setError(_ index: Int, _ event: EventFD?) { state.withLock { $0.errors[index] = event } }

  func setInBand(_ isInBand: Bool) { state.withLock { $0.isInBand = isInBand } }

  /// The queue was stopped: what it broke is mended by starting it anew.
  func forget(_ index: Int) { state.withLock { _ = $0.broken.remove(index) } }

  /// Whether a virtqueue is broken: DEVICE_NEEDS_RESET (§2.1.2).
  var needsReset: Bool { state.withLock { !$0.broken.isEmpty } }
}
