public import DMA
public import IOMMUInterface
import Synchronization

/// Intel VT-d in legacy mode, at the level its driver programs it: registers, root, context and second-level tables in
/// guest memory, invalidation by register and by queue, fault records with an interrupt. Interrupts are not remapped.
///
/// Each endpoint's own cache and the context cache here keep what the tables say until the driver invalidates it.
/// Registers are read and written by the guest's processors, any of them; a write returns when its command is done and
/// no access in flight depends on the old state.
public final class VTdUnit: IOMMU {
  struct State {
    var registers = [UInt32](repeating: 0, count: VTdRegister.byteCount / 4)
    var requesters = RequesterTable<VTdContext>()
    /// The root table that a command latched.
    var rootTable: UInt64 = 0
    var status = VTdGlobal()
    /// The fault record to be written next.
    var nextRecord = 0
  }
  public let options: VTdOptions
  public let memory: GuestMemory
  let walk: VTdWalk
  let state: Mutex<State>
  /// Register writes, one after the other: what they start ends before the next.
  private let writes = Mutex(())
  private let interrupt: @Sendable (InterruptMessage) -> Void

  /// - Parameter interrupt: delivers a message to the machine. Called on any thread, queue threads included: it must
  ///   not wait.
  public init(
    _ memory: GuestMemory, options: VTdOptions = VTdOptions(), interrupt: @escaping @Sendable (InterruptMessage) -> Void
  ) {
    self.memory = memory
    self.options = options
    self.interrupt = interrupt
    walk = VTdWalk(memory: memory, options: options)
    var state = State()
    state.reset(options)
    self.state = Mutex(state)
  }

  /// Bytes of the register window.
  public static var registerBytes: Int { VTdRegister.byteCount }

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
      state.withLock { $0.reset(options) }
      forget { _, _ in true }
    }
  }

  // MARK: Registers

  /// What a processor reads: 4 or 8 bytes at a multiple of 4. Other accesses, and offsets without a register, read as
  /// zero.
  public func read(at offset: Int, width: Int) -> UInt64 {
    guard offset >= 0, offset & 3 == 0, width == 4 || width == 8, offset <= VTdRegister.byteCount - width else {
      return 0
    }
    return state.withLock { state in
      let low = UInt64(state.registers[offset / 4])
      return width == 4 ? low : low | UInt64(state.registers[offset / 4 + 1]) << 32
    }
  }

  /// What a processor writes, with the same widths. Returns when the write's command is done. Not from a queue's
  /// thread.
  public func write(_ value: UInt64, at offset: Int, width: Int) {
    guard offset >= 0, offset & 3 == 0, width == 4 || width == 8, offset <= VTdRegister.byteCount - width else {
      return
    }
    writes.withLock { _ in
      write(UInt32(truncatingIfNeeded: value), at: offset)
      if width == 8 { write(UInt32(truncatingIfNeeded: value >> 32), at: offset + 4) }
    }
  }

  private func write(_ value: UInt32, at offset: Int) {
    switch offset {
    case VTdRegister.globalCommand: command(VTdGlobal(rawValue: value))
    case VTdRegister.contextCommand + 4:
      set(value & 0xE000_0003, at: offset)
      if value & 1 << 31 != 0 { contextCommand() }
    case VTdRegister.invalidateIOTLB + 4:
      set(value & 0xB003_FFFF, at: offset)
      if value & 1 << 31 != 0 { iotlbCommand() }
    case VTdRegister.queueTail:
      set(value & 0x7FFF0, at: offset)
      runQueue()
    case VTdRegister.queueAddress, VTdRegister.queueAddress + 4:
      // The queue stays where it is while it is in use.
      if !state.withLock({ $0.status.contains(.queuedInvalidation) }) {
        set(offset & 4 == 0 ? value & ~0xFF8 : value, at: offset)
      }
    case VTdRegister.faultStatus: clearFaults(VTdFaultStatus(rawValue: value))
    case VTdRegister.completionStatus: state.withLock { $0[offset] &= ~(value & 1) }
    case VTdRegister.faultEvent, VTdRegister.completionEvent: setEventControl(value, at: offset)
    case VTdRegister.rootTable, VTdRegister.rootTable + 4, VTdRegister.contextCommand, VTdRegister.invalidateIOTLB,
      VTdRegister.invalidateAddress, VTdRegister.invalidateAddress + 4,
      VTdRegister.faultEvent + 4...VTdRegister.faultEvent + 12,
      VTdRegister.completionEvent + 4...VTdRegister.completionEvent + 12:
      set(value, at: offset)
    case VTdRegister.faultRecord...: if offset & 15 == 12, value & 1 << 31 != 0 { clearRecord(at: offset) }
    default: break
    }
  }

  func set(_ value: UInt32, at offset: Int) { state.withLock { $0[offset] = value } }

  private func command(_ command: VTdGlobal) {
    let turned = state.withLock { state in
      let was = state.status
      // Of these a write says how it shall be; the others happen once.
      for bit in [VTdGlobal.translation, .queuedInvalidation] {
        if command.contains(bit) { state.status.insert(bit) } else { state.status.remove(bit) }
      }
      if command.contains(.rootTablePointer) {
        state.rootTable = state.word(VTdRegister.rootTable)
        state.status.insert(.rootTablePointer)
      }
      if state.status.contains(.queuedInvalidation) != was.contains(.queuedInvalidation) {
        state[VTdRegister.queueHead] = 0
        if !state.status.contains(.queuedInvalidation) { state[VTdRegister.queueTail] = 0 }
      }
      return was.contains(.translation) != state.status.contains(.translation)
    }
    if turned { forget { _, _ in true } }
    // The status says so only now that it is so for every device.
    state.withLock { $0[VTdRegister.globalStatus] = $0.status.rawValue }
    runQueue()
  }

  /// Sends the message of a pair of event registers, or keeps it pending until it is unmasked.
  func raise(event offset: Int) {
    let message: InterruptMessage? = state.withLock { state in
      guard state[offset] & 1 << 31 == 0 else {
        state[offset] |= 1 << 30
        return nil
      }
      return state.message(of: offset)
    }
    if let message { interrupt(message) }
  }

  private func setEventControl(_ value: UInt32, at offset: Int) {
    let message: InterruptMessage? = state.withLock { state in
      let isPending = state[offset] & 1 << 30 != 0
      let isMasked = value & 1 << 31 != 0
      state[offset] = (isMasked ? 1 << 31 : 0) | (isPending && isMasked ? 1 << 30 : 0)
      return isPending && !isMasked ? state.message(of: offset) : nil
    }
    if let message { interrupt(message) }
  }

  /// Drops what is remembered of the endpoints that `isConcerned` picks by number and context, and returns when nothing
  /// uses it.
  func forget(
    isContext: Bool = true, in pages: PageRange = .all, _ isConcerned: (RequesterID, VTdContext?) -> Bool
  ) {
    for endpoint in state.withLock({ $0.requesters.concerned(isContext: isContext, isConcerned) }) {
      endpoint.invalidate(from: DMAAddress(pages.first), through: DMAAddress(pages.last))
    }
  }
}

extension VTdUnit.State {
  /// The register at an offset, a multiple of 4 below the number of their bytes.
  subscript(_ offset: Int) -> UInt32 {
    get { registers[offset / 4] }
    set { registers[offset / 4] = newValue }
  }
  /// Two of them as one.
  func word(_ offset: Int) -> UInt64 { UInt64(self[offset]) | UInt64(self[offset + 4]) << 32 }

  func message(of event: Int) -> InterruptMessage {
    InterruptMessage(address: word(event + 8), data: self[event + 4])
  }

  mutating func reset(_ options: VTdOptions) {
    registers = [UInt32](repeating: 0, count: registers.count)
    rootTable = 0
    status = []
    nextRecord = 0
    self[VTdRegister.version] = 0x10
    for (offset, word) in [
      (VTdRegister.capability, options.capability), (VTdRegister.extendedCapability, options.extendedCapability),
    ] {
      self[offset] = UInt32(truncatingIfNeeded: word)
      self[offset + 4] = UInt32(truncatingIfNeeded: word >> 32)
    }
    // Event interrupts are masked until the driver says where they go.
    self[VTdRegister.faultEvent] = 1 << 31
    self[VTdRegister.completionEvent] = 1 << 31
  }
}
