import PCI
import Synchronization
import Virtio
import VirtioServing

/// How a virtio function interrupts: by the vectors its driver mapped while MSI-X is enabled, else by ISR status and
/// the pin (§4.1.5.3, §4.1.5.4).
final class VirtioInterrupts: DeviceInterrupts {
  private struct State {
    var isr: UInt8 = 0
    var configuration = PCITransport.noVector
    var queues: [UInt16]
  }
  private let state: Mutex<State>
  private let msix: MSIX?
  private let intx: INTx

  init(queues: Int, _ msix: MSIX?, _ intx: INTx) {
    self.msix = msix
    self.intx = intx
    state = Mutex(State(queues: Array(repeating: PCITransport.noVector, count: queues)))
  }

  func usedBuffers(_ index: Int) {
    state.withLock { state in
      if let msix, msix.isEnabled {
        guard state.queues.indices.contains(index) else { return }
        send(state.queues[index], msix)
      } else {
        raise(PCITransport.ISR.queue, &state)
      }
    }
  }

  func configurationChanged() {
    state.withLock { state in
      raise(PCITransport.ISR.configuration, &state)
      if let msix, msix.isEnabled { send(state.configuration, msix) }
    }
  }

  private func send(_ vector: UInt16, _ msix: MSIX) {
    if vector != PCITransport.noVector { msix.signal(Int(vector)) }
  }

  private func raise(_ bit: UInt8, _ state: inout State) {
    state.isr |= bit
    drive(state)
  }

  /// The pin follows ISR status, unless messages are used instead.
  private func drive(_ state: borrowing State) { intx.setWanted(state.isr != 0 && msix?.isEnabled != true) }

  /// MSI-X was enabled or disabled, perhaps.
  func refresh() { state.withLock { drive($0) } }

  /// Reading ISR status empties it, and lets the pin go (§4.1.4.5).
  func takeISR() -> UInt8 {
    state.withLock { state in
      let isr = state.isr
      state.isr = 0
      drive(state)
      return isr
    }
  }

  func reset() {
    state.withLock { state in
      state = State(queues: Array(repeating: PCITransport.noVector, count: state.queues.count))
      drive(state)
    }
  }

  // MARK: Vectors (§4.1.5.1.2); one that does not exist is not mapped

  var configurationVector: UInt16 { state.withLock { $0.configuration } }
  func setConfigurationVector(_ vector: UInt16) { state.withLock { $0.configuration = valid(vector) } }
  func vector(ofQueue index: Int) -> UInt16 {
    state.withLock { $0.queues.indices.contains(index) ? $0.queues[index] : PCITransport.noVector }
  }
  func setVector(_ vector: UInt16, ofQueue index: Int) {
    state.withLock { state in
      if state.queues.indices.contains(index) { state.queues[index] = valid(vector) }
    }
  }

  private func valid(_ vector: UInt16) -> UInt16 { Int(vector) < msix?.count ?? 0 ? vector : PCITransport.noVector }
}
