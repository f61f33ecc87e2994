/// Where a PCI function is: bus, device, function.
public struct PCIAddress: Hashable, Sendable {
  public var bus: UInt8
  public var device: UInt8
  public var function: UInt8

  public init(bus: UInt8, device: UInt8, function: UInt8 = 0) {
    self.bus = bus
    self.device = device
    self.function = function
  }

  /// Device and function in one byte.
  public var devfn: UInt8 { device << 3 | function }
  /// The identity its DMA carries.
  public var requester: UInt16 { UInt16(bus) << 8 | UInt16(devfn) }
}

/// What firmware does for PCI, done by the test: configuration space through ports 0xcf8/0xcfc, bus numbers, bridge
/// windows, base addresses.
public final class PCI {
  let qemu: QEMU
  private var nextBus: UInt8 = 1
  private var nextWindow = firstWindow
  private static let firstWindow: UInt64 = 0xe000_0000
  private static let extendedBase: UInt64 = 0xb000_0000
  private static let windowSize: UInt64 = 0x20_0000

  public init(_ qemu: QEMU) { self.qemu = qemu }

  // MARK: Configuration space

  private func select(_ at: PCIAddress, _ offset: Int) throws(QTestError) -> UInt16 {
    let address = 0x8000_0000 | UInt32(at.requester) << 8 | UInt32(offset & 0xfc)
    try qemu.portOut(0xcf8, address)
    return 0xcfc + UInt16(offset & 3)
  }

  /// A read of the first 256 bytes of a function's configuration space.
  public func read<T: FixedWidthInteger>(
    _ at: PCIAddress, _ offset: Int, as type: T.Type = T.self
  ) throws(QTestError) -> T {
    try qemu.portIn(select(at, offset))
  }

  /// A write to the first 256 bytes of a function's configuration space.
  public func write<T: FixedWidthInteger>(_ at: PCIAddress, _ offset: Int, _ value: T) throws(QTestError) {
    try qemu.portOut(select(at, offset), value)
  }

  /// Opens the memory-mapped configuration space, where the extended capabilities are.
  public func openExtendedSpace() throws(QTestError) {
    try write(PCIAddress(bus: 0, device: 0), 0x64, UInt32(0))
    try write(PCIAddress(bus: 0, device: 0), 0x60, UInt32(Self.extendedBase) | 1)
  }

  private func extended(_ at: PCIAddress, _ offset: Int) -> UInt64 {
    Self.extendedBase + UInt64(at.requester) << 12 + UInt64(offset)
  }

  /// The offset of an extended capability (needs `openExtendedSpace`).
  public func extendedCapability(_ at: PCIAddress, id: UInt16) throws(QTestError) -> Int? {
    var offset = 0x100
    for _ in 0..<64 where offset >= 0x100 {
      let header = try qemu.load(extended(at, offset), as: UInt32.self)
      if header == 0 || header == .max { return nil }
      if UInt16(truncatingIfNeeded: header) == id { return offset }
      offset = Int(header >> 20)
    }
    return nil
  }

  /// Turns a function's address translation service on, as an operating system does (capability 15). Returns false if
  /// it has none.
  public func enableATS(_ at: PCIAddress) throws(QTestError) -> Bool {
    guard let offset = try extendedCapability(at, id: 0x0f) else { return false }
    try qemu.store(extended(at, offset + 6), UInt16(0x8000))
    return try qemu.load(extended(at, offset + 6), as: UInt16.self) & 0x8000 != 0
  }

  /// The offsets of all capabilities with this id, in the order of the list.
  public func capabilities(_ at: PCIAddress, id: UInt8) throws(QTestError) -> [Int] {
    guard try read(at, 0x06, as: UInt16.self) & 0x10 != 0 else { return [] }
    var found: [Int] = []
    var offset = Int(try read(at, 0x34, as: UInt8.self) & 0xfc)
    for _ in 0..<48 where offset != 0 {
      if try read(at, offset, as: UInt8.self) == id { found.append(offset) }
      offset = Int(try read(at, offset + 1, as: UInt8.self) & 0xfc)
    }
    return found
  }

  // MARK: Resources

  /// Gives the bus behind a root port a number and a memory window, and the function behind it its base addresses;
  /// memory and bus mastering on.
  /// - Returns: the function's address on its new bus.
  public func openPort(_ port: PCIAddress) throws(QTestError) -> PCIAddress {
    let bus = nextBus
    nextBus += 1
    let window = nextWindow
    nextWindow += Self.windowSize
    try write(port, 0x18, UInt32(bus) << 16 | UInt32(bus) << 8 | UInt32(port.bus))
    try write(port, 0x20, UInt16(window >> 16) & 0xfff0)
    try write(port, 0x22, UInt16((window + Self.windowSize - 1) >> 16) & 0xfff0)
    try write(port, 0x24, UInt16(0xfff0))  // no prefetchable window: base above limit
    try write(port, 0x26, UInt16(0))
    try write(port, 0x04, UInt16(0x0006))
    let function = PCIAddress(bus: bus, device: 0)
    try assign(function, from: window, below: window + Self.windowSize)
    return function
  }

  /// Gives a function directly on bus 0 its base addresses; memory and bus mastering on.
  public func open(_ function: PCIAddress) throws(QTestError) {
    let window = nextWindow
    nextWindow += Self.windowSize
    try assign(function, from: window, below: window + Self.windowSize)
  }

  /// Gives the function behind an open root port its base addresses once more, after another one was put there.
  public func reopen(_ function: PCIAddress) throws(QTestError) {
    let window = Self.firstWindow + UInt64(function.bus - 1) * Self.windowSize
    try assign(function, from: window, below: window + Self.windowSize)
  }

  /// Switches the power of a root port's slot, as an operating system does when it lets go of what is there, and when
  /// it takes what was put there.
  public func setPower(_ port: PCIAddress, _ on: Bool) throws(QTestError) {
    guard let express = try capabilities(port, id: 0x10).first else { throw .missing("a slot at \(port)") }
    // The power controller's bit says off; its indicator is 1 for on and 3 for off.
    let control = try read(port, express + 0x18, as: UInt16.self) & ~0x700
    try write(port, express + 0x18, control | (on ? 0x100 : 0x700))
  }

  /// Turns MSI-X on with one vector, whose message is these four bytes at this address of guest memory.
  public func enableVector(_ at: PCIAddress, address: UInt64, data: UInt32) throws(QTestError) {
    guard let capability = try capabilities(at, id: 0x11).first else { throw .missing("MSI-X at \(at)") }
    let place = try read(at, capability + 4, as: UInt32.self)
    let entry = try base(at, Int(place & 7)) + UInt64(place & ~7)
    for (offset, value) in [
      (0, UInt32(truncatingIfNeeded: address)), (4, UInt32(truncatingIfNeeded: address >> 32)), (8, data), (12, 0),
    ] as [(UInt64, UInt32)] {
      try qemu.store(entry + offset, value)
    }
    try write(at, capability + 2, read(at, capability + 2, as: UInt16.self) & ~0x4000 | 0x8000)
  }

  /// Bus mastering of a function: off, it may not touch memory.
  public func setBusMaster(_ function: PCIAddress, _ on: Bool) throws(QTestError) {
    let command = try read(function, 0x04, as: UInt16.self)
    try write(function, 0x04, on ? command | 4 : command & ~4)
  }

  private func assign(_ function: PCIAddress, from start: UInt64, below end: UInt64) throws(QTestError) {
    guard try read(function, 0x00, as: UInt16.self) != 0xffff else { throw .missing("PCI function \(function)") }
    var next = start
    var register = 0x10
    while register < 0x28 {
      try write(function, register, UInt32.max)
      let answer = try read(function, register, as: UInt32.self)
      let wide = answer & 0x6 == 0x4
      if answer != 0, answer & 1 == 0 {
        let size = UInt64(~(answer & ~0xf) &+ 1)
        next = (next + size - 1) / size * size
        guard next + size <= end else { throw .missing("room for a base address of \(size) bytes") }
        try write(function, register, UInt32(next))
        if wide { try write(function, register + 4, UInt32(next >> 32)) }
        next += size
      }
      register += wide ? 8 : 4
    }
    try write(function, 0x04, UInt16(0x0006))
  }

  /// The base address a register holds.
  public func base(_ function: PCIAddress, _ index: Int) throws(QTestError) -> UInt64 {
    let low = try read(function, 0x10 + index * 4, as: UInt32.self)
    var base = UInt64(low & ~0xf)
    if low & 0x6 == 0x4 { base |= UInt64(try read(function, 0x14 + index * 4, as: UInt32.self)) << 32 }
    return base
  }
}
