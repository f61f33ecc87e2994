import Synchronization

/// A function's configuration space: 256 bytes, or 4096 with a PCI Express capability, that software reads and writes
/// in any width, of which it changes what it may.
///
/// Any thread may use it. Reads past the end are all ones, writes there are dropped. Changes of a write to MSI-X and
/// the interrupt pin take effect before it returns.
public final class ConfigurationSpace: Sendable {
  /// What software has programmed, as the bus routes by it.
  public struct Decoding: Hashable, Sendable {
    public var command: PCICommand = []
    /// The BARs that are decoded now.
    public var windows: [BARWindow] = []
    /// A bridge's numbers and windows.
    public var bridge: BridgeDecoding?
  }

  private struct State {
    var bytes: [UInt8]
    let initial: [UInt8]
    let writable: [UInt8]
    /// Software has asked for a function level reset, and the bus has not done it yet.
    var wantsReset = false
  }
  private let state: Mutex<State>
  public let bars: [BAR]
  /// Whether it is a bridge's (header type 1).
  public let isBridge: Bool
  private let msixAt: Int?
  /// Where a write of bit 7 starts a function level reset.
  private let resetAt: Int?
  private let msix: MSIX?
  private let intx: INTx?

  /// - Parameters:
  ///   - msix: the MSI-X table of the layout's capability.
  ///   - intx: the interrupt pin.
  public init(_ layout: ConfigurationLayout, msix: MSIX? = nil, intx: INTx? = nil) {
    state = Mutex(State(bytes: layout.bytes, initial: layout.bytes, writable: layout.writable))
    bars = layout.bars
    isBridge = layout.isBridge
    msixAt = layout.msixAt
    resetAt = layout.express.flatMap { $0.resets ? $0.at + PCIExpress.deviceControl + 1 : nil }
    self.msix = msix
    self.intx = intx
  }

  /// 256, or 4096 with a PCI Express capability.
  public var byteCount: Int { state.withLock { $0.bytes.count } }

  /// Reads `width` bytes, little-endian.
  public func read(at offset: Int, width: Int) -> UInt32 {
    state.withLock { state in
      var value: UInt32 = 0
      for i in 0..<min(max(width, 0), 4) {
        let at = offset &+ i
        var byte: UInt8 = 0xff
        if state.bytes.indices.contains(at) { byte = state.bytes[at] }
        // The one bit that changes by itself.
        if at == PCIRegister.status, let intx { byte = byte & 0xf7 | (intx.isWanted ? UInt8(PCIStatus.interrupt) : 0) }
        value |= UInt32(byte) << UInt32(8 * i)
      }
      return value
    }
  }

  /// Writes `width` bytes, little-endian, as far as they are writable.
  public func write(at offset: Int, width: Int, _ value: UInt32) {
    state.withLock { state in
      for i in 0..<min(max(width, 0), 4) {
        let at = offset &+ i
        guard state.bytes.indices.contains(at) else { continue }
        let byte = UInt8(truncatingIfNeeded: value >> UInt32(8 * i))
        state.bytes[at] = state.bytes[at] & ~state.writable[at] | byte & state.writable[at]
        if at == resetAt, byte & 0x80 != 0 { state.wantsReset = true }
      }
      apply(state)
    }
  }

  /// Whether software has asked for a function level reset since the last question.
  func takeResetRequest() -> Bool {
    state.withLock { state in
      defer { state.wantsReset = false }
      return state.wantsReset
    }
  }

  /// The function's own change to its registers, the read-only ones included.
  public func set(_ value: UInt32, at offset: Int, width: Int) {
    state.withLock { state in
      for i in 0..<min(max(width, 0), 4) where state.bytes.indices.contains(offset &+ i) {
        state.bytes[offset + i] = UInt8(truncatingIfNeeded: value >> UInt32(8 * i))
      }
    }
  }

  /// Everything as after power-on, except the bus's state of the slot.
  public func reset() {
    state.withLock { state in
      let header = state.bytes[PCIRegister.headerType]
      state.bytes = state.initial
      state.bytes[PCIRegister.headerType] = header
      apply(state)
    }
    msix?.reset()
  }

  /// The command register.
  public var command: PCICommand {
    PCICommand(rawValue: UInt16(truncatingIfNeeded: read(at: PCIRegister.command, width: 2)))
  }
  /// Whether MSI-X is enabled: the pin is not used then.
  public var isMSIXEnabled: Bool { msix?.isEnabled ?? false }

  /// The state by which the bus routes.
  public var decoding: Decoding {
    state.withLock { state in
      func value(_ at: Int, _ width: Int) -> UInt64 {
        (0..<width).reduce(0) { $0 | UInt64(state.bytes[at + $1]) << UInt64(8 * $1) }
      }
      let command = PCICommand(rawValue: UInt16(value(PCIRegister.command, 2)))
      var result = Decoding(command: command)
      for bar in bars where command.contains(bar.kind.isIO ? .ioSpace : .memorySpace) {
        let base = value(PCIRegister.bar(bar.index), bar.kind.isWide ? 8 : 4) & bar.mask
        // At 0 a BAR has no address yet: an access to it could not be told from one to memory.
        if base != 0 {
          result.windows.append(BARWindow(index: bar.index, isIO: bar.kind.isIO, base: base, size: bar.size))
        }
      }
      if isBridge { result.bridge = BridgeDecoding(value) }
      return result
    }
  }

  /// Bit 7 of the header type: the device has functions besides function 0.
  func setMultifunction(_ isOn: Bool) {
    state.withLock { state in
      if isOn { state.bytes[PCIRegister.headerType] |= 0x80 } else { state.bytes[PCIRegister.headerType] &= 0x7f }
    }
  }

  /// Under the lock, so that two writers leave MSI-X and the pin as the register reads.
  private func apply(_ state: borrowing State) {
    if let intx {
      let command = UInt16(state.bytes[PCIRegister.command]) | UInt16(state.bytes[PCIRegister.command + 1]) << 8
      intx.setDisabled(PCICommand(rawValue: command).contains(.interruptDisable))
    }
    if let msix, let msixAt {
      let control = state.bytes[msixAt + 3]
      msix.setControl(isEnabled: control & 0x80 != 0, isMasked: control & 0x40 != 0)
    }
  }
}
