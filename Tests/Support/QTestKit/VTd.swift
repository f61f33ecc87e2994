/// A DMA that VT-d refused, from its fault recording registers.
public struct VTdFault: Hashable, Sendable {
  /// The page of the refused address.
  public var address: UInt64
  /// The requester: bus, device and function.
  public var requester: UInt16
  /// Whether it was a read of memory (or, if false, a write).
  public var isRead: Bool
  /// VT-d's reason: 2 no context entry, 5 no write permission, 6 no read permission.
  public var reason: UInt8
}

/// QEMU's VT-d, register by register; tables are written into guest memory by hand.
public final class VTd {
  /// The register block of the only unit.
  public static let base: UInt64 = 0xfed9_0000
  let qemu: QEMU
  private let rootTable: UInt64
  private var contextTables: [UInt8: UInt64] = [:]
  private var queue: InvalidationQueue?
  private let faultOffset: UInt64
  private let faultCount: UInt64
  private let immediateOffset: UInt64
  private var nextFault: UInt64 = 0

  public init(_ qemu: QEMU) throws(QTestError) {
    self.qemu = qemu
    guard try qemu.load(Self.base, as: UInt32.self) == 0x10 else { throw .missing("a VT-d unit of version 1.0") }
    let capability = try qemu.load(Self.base + 0x08, as: UInt64.self)
    faultOffset = (capability >> 24 & 0x3ff) * 16
    faultCount = (capability >> 40 & 0xff) + 1
    let extended = try qemu.load(Self.base + 0x10, as: UInt64.self)
    immediateOffset = (extended >> 8 & 0x3ff) * 16
    rootTable = try qemu.frames.take()
    try qemu.fill(rootTable, count: 4096, with: 0)
  }

  // MARK: Turning it on and off

  private func command(_ bit: UInt32, _ on: Bool, oneShot: Bool = false) throws(QTestError) {
    // One-shot bits read back as state, never as a command.
    let state = try qemu.load(Self.base + 0x1c, as: UInt32.self) & 0x96ff_ffff
    try qemu.store(Self.base + 0x18, on ? state | 1 << bit : state & ~(1 << bit))
    try qemu.wait(for: "VT-d state bit \(bit)") { () throws(QTestError) in
      try (qemu.load(Self.base + 0x1c, as: UInt32.self) & 1 << bit != 0) == (on || oneShot)
    }
  }

  /// Sets the root table and turns translation on: from here every translated device needs an entry.
  public func enable() throws(QTestError) {
    try qemu.store(Self.base + 0x20, rootTable)
    try command(30, true, oneShot: true)
    try invalidateContexts()
    try invalidate(queue == nil ? .immediateGlobal : .global)
    try command(31, true)
  }

  /// Turns translation off: every address means itself again.
  public func disable() throws(QTestError) { try command(31, false) }

  /// Turns queued invalidation on, with a queue of 256 descriptors.
  public func enableQueue() throws(QTestError) {
    let page = try qemu.frames.take()
    let status = try qemu.frames.take()
    try qemu.fill(page, count: 4096, with: 0)
    try qemu.store(Self.base + 0x88, 0 as UInt64)
    try qemu.store(Self.base + 0x90, page)
    try command(26, true)
    queue = InvalidationQueue(qemu, page: page, status: status)
  }

  // MARK: Contexts of requesters

  /// Puts a requester's DMA through a table.
  /// - `deviceTLB`: whether it may use ATS, and so gets device-TLB invalidations.
  public func attach(_ requester: UInt16, to table: TranslationTable, deviceTLB: Bool) throws(QTestError) {
    let type: UInt64 = deviceTLB ? 1 : 0
    try setContext(
      requester, low: table.root | type << 2 | 1, high: UInt64(table.levels - 2) | UInt64(table.domain) << 8)
  }

  /// Lets a requester's addresses mean themselves.
  public func passThrough(_ requester: UInt16, domain: UInt16) throws(QTestError) {
    try setContext(requester, low: 2 << 2 | 1, high: 2 | UInt64(domain) << 8)
  }

  /// Takes a requester's entry away: its DMA faults from the next context invalidation on.
  public func detach(_ requester: UInt16) throws(QTestError) { try setContext(requester, low: 0, high: 0) }

  private func setContext(_ requester: UInt16, low: UInt64, high: UInt64) throws(QTestError) {
    let bus = UInt8(requester >> 8)
    let table: UInt64
    if let known = contextTables[bus] {
      table = known
    } else {
      table = try qemu.frames.take()
      try qemu.fill(table, count: 4096, with: 0)
      try qemu.store([(rootTable + UInt64(bus) * 16 + 8, 0), (rootTable + UInt64(bus) * 16, table | 1)])
      contextTables[bus] = table
    }
    let entry = table + UInt64(requester & 0xff) * 16
    try qemu.store([(entry + 8, high), (entry, low)])
  }

  // MARK: Invalidation

  /// How the guest invalidates changed entries in VT-d.
  public enum Invalidation: Hashable, Sendable {
    /// Through the IOTLB register.
    case immediateGlobal
    /// Through the IOTLB register, one page.
    case immediatePage(domain: UInt16, address: UInt64)
    /// Through the queue.
    case global
    case domain(UInt16)
    /// 2^`order` pages from an address aligned to them.
    case pages(domain: UInt16, address: UInt64, order: UInt8)
    /// The device's own translation cache: 2^`order` pages; 52 is everything.
    case device(requester: UInt16, address: UInt64, order: UInt8)
  }

  /// Issues one invalidation and waits until VT-d is done with it.
  public func invalidate(_ what: Invalidation) throws(QTestError) {
    let registers = Self.base + immediateOffset
    switch what {
    case .immediateGlobal: try immediate(registers, 1 << 60)
    case .immediatePage(let domain, let address):
      try qemu.store(registers, address & ~0xfff)
      try immediate(registers, 3 << 60 | UInt64(domain) << 32)
    default:
      guard let queue else { throw .missing("an invalidation queue") }
      try queue.submit(what)
    }
  }

  /// Writes invalidations into the queue, up to 254. VT-d does not read them before ``submit()``: for measurements of
  /// their cost.
  public func prepare(_ many: [Invalidation]) throws(QTestError) {
    guard let queue else { throw .missing("an invalidation queue") }
    try queue.prepare(many)
  }

  /// Has VT-d carry out what was prepared, and waits until it is done with all of it.
  public func submit() throws(QTestError) { try queue?.submit() }

  private func immediate(_ registers: UInt64, _ command: UInt64) throws(QTestError) {
    try qemu.store(registers + 8, 1 << 63 | command)
    try qemu.wait(for: "the IOTLB register") { () throws(QTestError) in
      try qemu.load(registers + 8, as: UInt64.self) >> 63 == 0
    }
  }

  /// Makes VT-d forget every context entry it read.
  public func invalidateContexts() throws(QTestError) {
    if let queue { return try queue.submitContextFlush() }
    try qemu.store(Self.base + 0x28, 1 << 63 | 1 << 61 as UInt64)
    try qemu.wait(for: "the context register") { () throws(QTestError) in
      try qemu.load(Self.base + 0x28, as: UInt64.self) >> 63 == 0
    }
  }

  // MARK: Faults

  /// The refused accesses recorded since the last call, oldest first; the records are cleared.
  public func takeFaults() throws(QTestError) -> [VTdFault] {
    var faults: [VTdFault] = []
    for _ in 0..<faultCount {
      let record = Self.base + faultOffset + nextFault * 16
      let high = try qemu.load(record + 8, as: UInt64.self)
      guard high >> 63 != 0 else { break }
      let low = try qemu.load(record, as: UInt64.self)
      faults.append(
        VTdFault(
          address: low & ~0xfff, requester: UInt16(truncatingIfNeeded: high), isRead: high >> 62 & 1 != 0,
          reason: UInt8(truncatingIfNeeded: high >> 32)))
      try qemu.store(record + 12, UInt32(1) << 31)
      nextFault = (nextFault + 1) % faultCount
    }
    try qemu.store(Self.base + 0x34, UInt32(0x7f))
    return faults
  }
}
