public import DMA
public import IOMMUInterface
import Synchronization

/// AMD-Vi at the level its driver programs it: registers, a device table and page tables of up to six levels in guest
/// memory, a command buffer, an event log with an interrupt. There are no guest tables, no interrupt remapping, no
/// exclusion range.
///
/// Each endpoint's own cache and the device table cache here keep what the tables say until the driver invalidates it.
/// Registers are read and written by the guest's processors, any of them; a write returns when its command is done and
/// no access in flight depends on the old state.
public final class AMDViUnit: IOMMU {
  struct State {
    var requesters = RequesterTable<AMDViContext>()
    /// By their offsets; an offset without a register reads as zero.
    var registers: [Int: UInt64] = [:]
    var control = AMDViControl()
    var status = AMDViStatus()
    var message: InterruptMessage?
  }
  public let memory: GuestMemory
  let walk: AMDViWalk
  let state: Mutex<State>
  /// Register writes, one after the other: what they start ends before the next.
  private let writes = Mutex(())
  private let interrupt: @Sendable (InterruptMessage) -> Void

  /// - Parameters:
  ///   - levels: of page tables, at most: 4, 5 or 6; anything else counts as 6.
  ///   - interrupt: delivers a message to the machine. Called on any thread, queue threads included: it must not wait.
  public init(_ memory: GuestMemory, levels: Int = 6, interrupt: @escaping @Sendable (InterruptMessage) -> Void) {
    self.memory = memory
    self.interrupt = interrupt
    walk = AMDViWalk(memory: memory, levels: (4...6).contains(levels) ? levels : 6)
    state = Mutex(State())
  }

  /// Bytes of the register window.
  public static var registerBytes: Int { AMDViRegister.byteCount }

  /// The target of its interrupts, as in the MSI capability of its PCI function; nil: none.
  public func setMessage(_ message: InterruptMessage?) { state.withLock { $0.message = message } }

  // MARK: Endpoints

  public func adopt(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    state.withLock { $0.requesters.adopt(endpoint, as: requester) }
    endpoint.setRoute(.translated(self))
  }

  public func release(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    state.withLock { $0.requesters.release(endpoint, as: requester) }
    endpoint.setRoute(.blocked(.stopped))
  }

  /// As at power-on: translation is off and everything passes.
  public func reset() {
    writes.withLock { _ in
      state.withLock { state in
        state.registers = [:]
        state.control = []
        state.status = []
      }
      forget { _, _ in true }
    }
  }

  // MARK: Registers

  private static func isRegister(_ offset: Int, _ width: Int) -> Bool {
    offset >= 0 && offset < AMDViRegister.byteCount && (width == 8 && offset & 7 == 0 || width == 4 && offset & 3 == 0)
  }

  /// What a processor reads: 4 or 8 bytes at a multiple of that. Other accesses, and offsets without a register, read
  /// as zero.
  public func read(at offset: Int, width: Int) -> UInt64 {
    guard Self.isRegister(offset, width) else { return 0 }
    let word = state.withLock { state in
      switch offset & ~7 {
      case AMDViRegister.control: state.control.rawValue
      case AMDViRegister.status: state.status.rawValue
      // INVALIDATE_IOMMU_ALL, and how many levels.
      case AMDViRegister.features: 1 << 6 | UInt64(walk.levels - 4) << 10
      default: state.registers[offset & ~7] ?? 0
      }
    }
    return width == 8 ? word : word >> (UInt64(offset & 4) * 8) & 0xFFFF_FFFF
  }

  /// What a processor writes, with the same widths. Returns when the write's command is done. Not from a queue's
  /// thread.
  public func write(_ value: UInt64, at offset: Int, width: Int) {
    guard Self.isRegister(offset, width) else { return }
    let shift = UInt64(offset & 4) * 8
    let mask: UInt64 = width == 8 ? .max : 0xFFFF_FFFF << shift
    writes.withLock { _ in write(value << shift & mask, mask, to: offset & ~7) }
  }

  private func write(_ value: UInt64, _ mask: UInt64, to register: Int) {
    func set(_ writable: UInt64) {
      state.withLock { $0.registers[register] = ($0.registers[register] ?? 0) & ~mask | value & writable }
    }
    switch register {
    case AMDViRegister.deviceTable: set(0x000F_FFFF_FFFF_F1FF)
    case AMDViRegister.commandBuffer, AMDViRegister.eventLog: set(0x0F0F_FFFF_FFFF_F000)
    case AMDViRegister.commandHead, AMDViRegister.eventHead, AMDViRegister.eventTail: set(0x7FFF0)
    case AMDViRegister.commandTail:
      set(0x7FFF0)
      runCommands()
    case AMDViRegister.control:
      setControl(AMDViControl(rawValue: state.withLock { $0.control.rawValue } & ~mask | value))
    case AMDViRegister.status:
      state.withLock { $0.status.subtract(AMDViStatus(rawValue: value).intersection(.clearable)) }
    default: break
    }
  }

  private func setControl(_ control: AMDViControl) {
    let turned = state.withLock { state in
      let was = state.control
      state.control = control.intersection([.enabled, .eventLog, .eventInterrupt, .completionInterrupt, .commandBuffer])
      // What stood still at an error runs again once it was off.
      for (bit, runs) in [(AMDViControl.commandBuffer, AMDViStatus.commandsRun), (.eventLog, .eventLogRuns)] {
        if !control.contains(bit) { state.status.remove(runs) } else if !was.contains(bit) { state.status.insert(runs) }
      }
      return was.contains(.enabled) != control.contains(.enabled)
    }
    if turned { forget { _, _ in true } }
    runCommands()
  }

  /// Sets an interrupt's bit in the status register, and sends the message if it is wanted and the bit was clear.
  func raise(_ bit: AMDViStatus, if enabled: AMDViControl) {
    let message: InterruptMessage? = state.withLock { state in
      let isNew = state.status.insert(bit).inserted
      return isNew && state.control.contains(enabled) ? state.message : nil
    }
    if let message { interrupt(message) }
  }

  /// Drops what is remembered of the endpoints that `isConcerned` picks by number and context, and returns when nothing
  /// uses it.
  func forget(
    isContext: Bool = true, in pages: PageRange = .all, _ isConcerned: (RequesterID, AMDViContext?) -> Bool
  ) {
    for endpoint in state.withLock({ $0.requesters.concerned(isContext: isContext, isConcerned) }) {
      endpoint.invalidate(from: DMAAddress(pages.first), through: DMAAddress(pages.last))
    }
  }
}
