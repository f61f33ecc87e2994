internal import DMA
internal import HostIO
internal import IOMMUInterface
internal import PCI
internal import Synchronization

/// A PCI function on a bus of its own, as the regions and interrupts of vfio-user: alone behind an IOMMU whose mappings
/// are the client's. Control thread only.
final class HostedFunction: Sendable {
  let memory: ClientMemory
  let interrupts = InterruptRelay()
  private let bus: PCIBus
  private let function: any PCIFunction
  private let requester = RequesterID(bus: 0, device: 0, function: 0)
  /// The function's doorbells, if a client may map them.
  private let doorbells: DoorbellArea?
  /// Those that the present client was given.
  private let watch = Mutex<DoorbellWatch?>(nil)
  /// Where the function's MSI-X table is; nil: it has none.
  let table: MSIXPlace?

  /// Whether the function has an interrupt pin.
  var hasPin: Bool { function.configuration.read(at: PCIRegister.interruptPin, width: 1) != 0 }

  /// The place of an MSI-X table in a BAR.
  struct MSIXPlace: Sendable {
    var bar: Int
    var offset: UInt64
    var vectors: Int
  }

  /// - Parameters:
  ///   - doorbells: whether a client may map the function's doorbells.
  ///   - refused: called for each access that is refused, on queue threads; it must not wait for them.
  ///   - make: makes the function with what it reaches memory and interrupts through.
  init<F: PCIFunction>(
    doorbells: DoorbellPolicy = .messages, refused: @escaping @Sendable (DMAFault) -> Void = { _ in },
    _ make: (BusMaster) throws -> F
  ) throws {
    memory = try ClientMemory(refused: refused)
    bus = PCIBus(memory.memory, messages: interrupts, lines: interrupts)
    bus.setIOMMU(memory)
    let made = try bus.add(at: PCISlot(0), make)
    function = made
    self.doorbells = doorbells == .shared ? (made as? any DoorbellFunction)?.doorbells : nil
    table = Self.table(of: made)
    programTable()
  }

  // MARK: Regions

  /// Bytes of a region; 0: there is none.
  func size(of region: UInt32) -> UInt64 {
    switch region {
    case 0..<VfioRegion.barCount: function.configuration.bars.first { $0.index == Int(region) }?.size ?? 0
    case VfioRegion.configuration: UInt64(function.configuration.byteCount)
    default: 0
    }
  }

  /// Reads `count` bytes of a region, in the largest accesses that its alignment allows; nil: not all of it is there.
  func read(_ region: UInt32, at offset: UInt64, count: Int) -> [UInt8]? {
    guard contains(region, offset, count) else { return nil }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count)
    Self.pieces(offset, count, widest: region == VfioRegion.configuration ? 4 : 8) { at, width in
      let value =
        region == VfioRegion.configuration
        ? UInt64(bus.readConfiguration(of: requester, at: Int(at), width: width))
        : function.readBAR(Int(region), at: at, width: width)
      for i in 0..<width { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * i))) }
    }
    return bytes
  }

  /// Whether bytes are of the MSI-X table, which the client emulates and sets through ``program(_:isMasked:)``.
  private func isTable(_ region: UInt32, _ offset: UInt64, _ count: Int) -> Bool {
    guard let table, region == UInt32(table.bar) else { return false }
    return offset < table.offset + 16 * UInt64(table.vectors) && table.offset < offset + UInt64(count)
  }

  /// Writes to a region; false: not all of it is there, and nothing was written.
  func write(_ region: UInt32, at offset: UInt64, _ bytes: [UInt8]) -> Bool {
    guard contains(region, offset, bytes.count) else { return false }
    guard !isTable(region, offset, bytes.count) else { return true }
    page?.look()
    var next = 0
    Self.pieces(offset, bytes.count, widest: region == VfioRegion.configuration ? 4 : 8) { at, width in
      var value: UInt64 = 0
      for i in 0..<width { value |= UInt64(bytes[next + i]) << UInt64(8 * i) }
      next += width
      if region == VfioRegion.configuration {
        bus.writeConfiguration(of: requester, at: Int(at), width: width, UInt32(truncatingIfNeeded: value))
      } else {
        function.writeBAR(Int(region), at: at, width: width, value)
      }
    }
    return true
  }

  private func contains(_ region: UInt32, _ offset: UInt64, _ count: Int) -> Bool {
    let size = size(of: region)
    return offset <= size && UInt64(count) <= size - offset
  }

  private static func pieces(_ offset: UInt64, _ count: Int, widest: Int, _ body: (UInt64, Int) -> Void) {
    var (at, left) = (offset, count)
    while left > 0 {
      var width = widest
      while width > left || at % UInt64(width) != 0 { width /= 2 }
      body(at, width)
      at += UInt64(width)
      left -= width
    }
  }

  /// The device as after power-on; the client's mappings stay.
  func reset() {
    page?.look()
    bus.reset()
    programTable()
  }

  // MARK: Doorbells in shared memory

  /// What the present client was given.
  var page: DoorbellPage? { watch.withLock { $0?.page } }

  /// Whether there are doorbells that a client may map.
  var offersDoorbells: Bool { doorbells != nil }

  /// Where a region has doorbells that a client may map.
  func doorbells(in region: UInt32) -> DoorbellArea? {
    doorbells.flatMap { region == UInt32($0.bar) ? $0 : nil }
  }

  /// Gives the client its page, once.
  func shareDoorbells(_ area: DoorbellArea) throws(HostError) -> DoorbellPage {
    if let page { return page }
    let function = function
    let page = try DoorbellPage(area) { cell, value in
      function.writeBAR(area.bar, at: area.offset + 4 * UInt64(cell), width: 4, UInt64(value))
    }
    let new = try DoorbellWatch(page)
    watch.withLock { $0 = new }
    return page
  }

  /// The client has gone: what it still writes is not looked at.
  func endDoorbells() {
    let old = watch.withLock { watch in
      defer { watch = nil }
      return watch
    }
    old?.end()
  }

  // MARK: Interrupts

  /// Vector n's message carries n, unmasked: the client's own table masks.
  func programTable() {
    guard let table else { return }
    for vector in 0..<table.vectors { program(vector, isMasked: false) }
  }

  func program(_ vector: Int, isMasked: Bool) {
    guard let table, vector < table.vectors else { return }
    let entry = table.offset + 16 * UInt64(vector)
    function.writeBAR(table.bar, at: entry, width: 8, 0xFEE0_0000)
    function.writeBAR(table.bar, at: entry + 8, width: 8, UInt64(isMasked ? 1 : 0) << 32 | UInt64(vector))
  }

  private static func table(of function: any PCIFunction) -> MSIXPlace? {
    func read(_ at: Int, _ width: Int) -> Int { Int(function.configuration.read(at: at, width: width)) }
    var at = read(PCIRegister.capabilitiesPointer, 1)
    // A list that runs in a circle would be our own mistake; a bound costs nothing.
    for _ in 0..<48 where at != 0 {
      if read(at, 1) == 0x11 {
        let place = read(at + 4, 4)
        return MSIXPlace(
          bar: place & 7, offset: UInt64(place & ~7), vectors: (read(at + 2, 2) & 0x7ff) + 1)
      }
      at = read(at + 1, 1)
    }
    return nil
  }
}
