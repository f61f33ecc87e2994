public import IOMMUInterface

/// What a platform's firmware does with a bus: finds functions, numbers buses, gives every BAR a place, opens the
/// bridges.
///
/// It uses configuration accesses only, as firmware does. Bus mastering of functions is left to their drivers.
public struct PCIEnumerator {
  /// A function that was found.
  public struct Found: Hashable, Sendable {
    public var requester: RequesterID
    public var vendorID: UInt16
    public var deviceID: UInt16
    /// BARs that have a place.
    public var windows: [BARWindow]
  }

  private let bus: PCIBus
  private var memory: UInt64
  private let memoryEnd: UInt64
  private var highMemory: UInt64
  private let highMemoryEnd: UInt64
  private var io: UInt64
  private let ioEnd: UInt64
  private var nextBus: UInt8 = 1
  private var found: [Found] = []

  /// - Parameters:
  ///   - memory: room for 32-bit BARs, below 4 GiB.
  ///   - highMemory: room for 64-bit BARs.
  ///   - io: room for I/O BARs.
  public init(_ bus: PCIBus, memory: Range<UInt64>, highMemory: Range<UInt64>, io: Range<UInt64>) {
    self.bus = bus
    self.memory = memory.lowerBound
    memoryEnd = memory.upperBound
    self.highMemory = highMemory.lowerBound
    highMemoryEnd = highMemory.upperBound
    self.io = io.lowerBound
    ioEnd = io.upperBound
  }

  /// Sets everything up, from the root bus down. A BAR for which there is no room stays at 0, where it is not decoded.
  public mutating func enumerate() -> [Found] {
    found = []
    nextBus = 1
    scan(0)
    return found
  }

  private mutating func scan(_ number: UInt8) {
    for device in UInt8(0)..<32 {
      var functions: UInt8 = 1
      var function: UInt8 = 0
      while function < functions {
        let requester = RequesterID(bus: number, device: device, function: function)
        let vendor = UInt16(
          truncatingIfNeeded: bus.readConfiguration(of: requester, at: PCIRegister.vendorID, width: 2))
        if vendor != 0xffff {
          let type = bus.readConfiguration(of: requester, at: PCIRegister.headerType, width: 1)
          if function == 0, type & 0x80 != 0 { functions = 8 }
          let isBridge = type & 0x7f == 1
          let windows = place(requester, count: isBridge ? 2 : 6)
          let id = UInt16(truncatingIfNeeded: bus.readConfiguration(of: requester, at: PCIRegister.deviceID, width: 2))
          found.append(Found(requester: requester, vendorID: vendor, deviceID: id, windows: windows))
          if isBridge { descend(requester) }
        } else if function == 0 {
          break
        }
        function += 1
      }
    }
  }

  /// Sizes BARs and gives them places.
  private mutating func place(_ requester: RequesterID, count: Int) -> [BARWindow] {
    var windows: [BARWindow] = []
    var index = 0
    while index < count {
      let at = PCIRegister.bar(index)
      let low = probe(requester, at)
      let isIO = low & 1 == 1
      let isWide = !isIO && low & 6 == 4
      let high = isWide ? probe(requester, at + 4) : 0
      let mask = UInt64(low & (isIO ? ~3 : ~15)) | (isWide ? UInt64(high) << 32 : low == 0 ? 0 : 0xffff_ffff_0000_0000)
      let size = mask == 0 || low == 0 ? 0 : ~mask &+ 1
      if size > 0, let base = take(size, isIO: isIO, isWide: isWide) {
        bus.writeConfiguration(of: requester, at: at, width: 4, UInt32(truncatingIfNeeded: base))
        if isWide {
          bus.writeConfiguration(of: requester, at: at + 4, width: 4, UInt32(truncatingIfNeeded: base >> 32))
        }
        windows.append(BARWindow(index: index, isIO: isIO, base: base, size: size))
      }
      index += isWide ? 2 : 1
    }
    enable(requester, windows.contains { $0.isIO } ? .ioSpace : [], windows.contains { !$0.isIO } ? .memorySpace : [])
    return windows
  }

  /// Writes all ones, reads the size, puts the old value back.
  private func probe(_ requester: RequesterID, _ at: Int) -> UInt32 {
    let old = bus.readConfiguration(of: requester, at: at, width: 4)
    bus.writeConfiguration(of: requester, at: at, width: 4, .max)
    let read = bus.readConfiguration(of: requester, at: at, width: 4)
    bus.writeConfiguration(of: requester, at: at, width: 4, old)
    return read
  }

  private mutating func take(_ size: UInt64, isIO: Bool, isWide: Bool) -> UInt64? {
    if isIO { return Self.take(size, from: &io, to: ioEnd) }
    return isWide
      ? Self.take(size, from: &highMemory, to: highMemoryEnd) : Self.take(size, from: &memory, to: memoryEnd)
  }

  private static func take(_ size: UInt64, from next: inout UInt64, to end: UInt64) -> UInt64? {
    let base = aligned(next, size)
    guard base >= next, base < end, size <= end - base else { return nil }
    next = base + size
    return base
  }

  private static func aligned(_ address: UInt64, _ granule: UInt64) -> UInt64 {
    (address &+ (granule - 1)) & ~(granule - 1)
  }

  private func enable(_ requester: RequesterID, _ parts: PCICommand...) {
    let old = bus.readConfiguration(of: requester, at: PCIRegister.command, width: 2)
    let new = parts.reduce(PCICommand(rawValue: UInt16(truncatingIfNeeded: old))) { $0.union($1) }
    bus.writeConfiguration(of: requester, at: PCIRegister.command, width: 2, UInt32(new.rawValue))
  }

  private mutating func descend(_ bridge: RequesterID) {
    guard nextBus < 255 else { return }
    let secondary = nextBus
    nextBus += 1
    func set(_ at: Int, _ width: Int, _ value: UInt64) {
      bus.writeConfiguration(of: bridge, at: at, width: width, UInt32(truncatingIfNeeded: value))
    }
    set(PCIRegister.primaryBus, 1, UInt64(bridge.bus))
    set(PCIRegister.secondaryBus, 1, UInt64(secondary))
    set(PCIRegister.subordinateBus, 1, 255)
    let starts = (Self.aligned(memory, 1 << 20), Self.aligned(highMemory, 1 << 20), Self.aligned(io, 1 << 12))
    (memory, highMemory, io) = starts
    scan(secondary)
    set(PCIRegister.subordinateBus, 1, UInt64(nextBus - 1))
    (memory, highMemory, io) = (
      Self.aligned(memory, 1 << 20), Self.aligned(highMemory, 1 << 20), Self.aligned(io, 1 << 12)
    )
    // A window with nothing in it is closed by a limit below its base.
    let last = memory > starts.0 ? memory - 1 : 0
    set(PCIRegister.memoryBase, 2, memory > starts.0 ? starts.0 >> 16 : 0xfff0)
    set(PCIRegister.memoryLimit, 2, last >> 16)
    let isHigh = highMemory > starts.1
    set(PCIRegister.prefetchableBase, 2, isHigh ? starts.1 >> 16 & 0xfff0 : 0xfff0)
    set(PCIRegister.prefetchableLimit, 2, isHigh ? (highMemory - 1) >> 16 & 0xfff0 : 0)
    set(PCIRegister.prefetchableBaseUpper, 4, isHigh ? starts.1 >> 32 : 0xffff_ffff)
    set(PCIRegister.prefetchableLimitUpper, 4, isHigh ? (highMemory - 1) >> 32 : 0)
    let isIO = io > starts.2
    set(PCIRegister.ioBase, 1, isIO ? starts.2 >> 8 & 0xf0 : 0xf0)
    set(PCIRegister.ioLimit, 1, isIO ? (io - 1) >> 8 & 0xf0 : 0)
    set(PCIRegister.ioBaseUpper, 2, isIO ? starts.2 >> 16 : 0xffff)
    set(PCIRegister.ioLimitUpper, 2, isIO ? (io - 1) >> 16 : 0)
    enable(bridge, .ioSpace, .memorySpace, .busMaster)
  }
}
