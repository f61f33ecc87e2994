import QTestKit
import Testing

/// Compares bytes and names the first difference only: two whole pages are too much to read.
func expectSame(
  _ got: [UInt8], _ expected: [UInt8], _ what: String = "bytes", sourceLocation: SourceLocation = #_sourceLocation
) {
  guard got != expected else { return }
  let first = zip(got, expected).enumerated().first { $0.element.0 != $0.element.1 }
  let place =
    first.map { "byte \($0.offset) is \($0.element.0), expected \($0.element.1)" }
    ?? "\(got.count) of \(expected.count) bytes"
  Issue.record("\(what): \(place)", sourceLocation: sourceLocation)
}

extension Trait where Self == ConditionTrait {
  /// Skipped, and said so, where there is no QEMU.
  static var needsQEMU: Self { .enabled(if: QEMU.path != nil, Comment(rawValue: QEMU.absence)) }
  static var needsSluice: Self {
    .enabled(if: DiskBackend.sluicePath != nil, Comment(rawValue: DiskBackend.sluiceAbsence))
  }
}

extension QEMU {
  /// A page of guest memory holds one byte over and over, as it was filled.
  func expectFilled(
    _ frame: UInt64, with byte: UInt8, _ what: String = "bytes", sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    try expectSame(
      read(frame, count: 4096), [UInt8](repeating: byte, count: 4096), what, sourceLocation: sourceLocation)
  }
}

extension DiskDriver {
  /// What a driver of the day accepts, with a ring of this format.
  static func usual(_ format: RingFormat) -> UInt64 {
    usual & ~Feature.packed | (format == .packed ? Feature.packed : 0)
  }

  /// A read into one piece, whose bytes are those of the image.
  func expectRead(
    sector: Int, into buffer: UInt64, count: Int = 4096, seed: UInt64 = 1,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let completion = try run(Request.read, sector: sector, [Piece(buffer, count, writable: true)])
    #expect(completion == .init(status: 0, written: UInt32(count) + 1), sourceLocation: sourceLocation)
    try expectSame(
      memory.read(buffer, count: count), DiskImage.pattern(sector, count: count, seed: seed),
      sourceLocation: sourceLocation)
  }
}

extension DiskOptions {
  /// A disk that is not the usual one in some of its properties.
  init(_ backend: DiskBackend, _ adjust: (inout DiskOptions) -> Void) {
    self.init(backend)
    adjust(&self)
  }
}

/// A ring of either format, written literally.
func literalRing(
  _ memory: DeviceMemory, _ format: RingFormat, size: UInt16 = 16, eventIndex: Bool = false
) throws -> any LiteralRing {
  switch format {
  case .packed: try LiteralPackedRing(memory, size: size, eventIndex: eventIndex)
  case .split: try LiteralSplitRing(memory, size: size, eventIndex: eventIndex, usedOffset: 4)
  }
}

/// A descriptor of a split ring, byte by byte (§2.7.5).
func literalDescriptor(_ address: UInt64, _ count: UInt32, flags: UInt16, next: UInt16) -> [UInt8] {
  (0..<8).map { UInt8(truncatingIfNeeded: address >> ($0 * 8)) }
    + (0..<4).map { UInt8(truncatingIfNeeded: count >> ($0 * 8)) }
    + [UInt8(truncatingIfNeeded: flags), UInt8(flags >> 8), UInt8(truncatingIfNeeded: next), UInt8(next >> 8)]
}

/// One disk behind VT-d with a driver at DRIVER_OK: what most tests start from.
struct Fixture {
  let machine: DiskMachine
  let disk: DiskMachine.Disk
  let memory: DeviceMemory
  let driver: DiskDriver
  var vtd: VTd
  var qemu: QEMU { machine.qemu }
  var requester: UInt16 { disk.function.address.requester }
  let backend: DiskBackend

  init(
    _ backend: DiskBackend, _ format: RingFormat = .split, size: UInt16 = 16, wanted: UInt64 = DiskDriver.usual,
    addressBits: Int = 48,
    top: UInt64 = 0x1_0000_0000, queuedInvalidation: Bool = true, adjust: (inout DiskOptions) -> Void = { _ in }
  ) throws {
    var options = DiskOptions(backend)
    options.packed = format == .packed
    adjust(&options)
    machine = try DiskMachine([options], addressBits: addressBits, queuedInvalidation: queuedInvalidation)
    disk = machine.disks[0]
    vtd = try #require(machine.vtd)
    memory = try machine.domain(for: disk, levels: addressBits == 39 ? 3 : 4, top: top)
    driver = try DiskDriver(
      disk.function, memory, format, size: size, wanted: wanted, usedOffset: backend == .qemu ? 4 : 0)
    self.backend = backend
    driver.insistsOnWriteMark = backend == .sluice
    #expect(driver.features & Feature.accessPlatform != 0)
  }

  /// Invalidates changed pages in VT-d, as a guest in strict mode does: the unit's cache, then the device's if it has
  /// one.
  func invalidate(_ address: UInt64, order: UInt8 = 0) throws {
    guard let table = memory.table else { return }
    try vtd.invalidate(.pages(domain: table.domain, address: address, order: order))
    try invalidateDevice(address, order: order)
  }

  /// Makes VT-d look at its table again for a page. The device keeps what it knows.
  func invalidateUnit(_ address: UInt64) throws {
    guard let table = memory.table else { return }
    try vtd.invalidate(.pages(domain: table.domain, address: address, order: 0))
  }

  /// The device's own cache, if it has one.
  func invalidateDevice(_ address: UInt64, order: UInt8 = 0) throws {
    if disk.hasATS { try vtd.invalidate(.device(requester: requester, address: address, order: order)) }
  }

  /// A read whose data lands in `pieces`; checked against the image.
  func expectRead(
    sector: Int, into pieces: [Piece], indirect: Bool = false, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let count = pieces.reduce(0) { $0 + Int($1.count) }
    let completion = try driver.run(DiskDriver.Request.read, sector: sector, pieces, indirect: indirect)
    #expect(completion == .init(status: 0, written: UInt32(count) + 1), sourceLocation: sourceLocation)
    var bytes: [UInt8] = []
    for piece in pieces { bytes += try memory.read(piece.address, count: Int(piece.count)) }
    expectSame(bytes, DiskImage.pattern(sector, count: count), "the data of the read", sourceLocation: sourceLocation)
  }

  /// A write of a pattern, put into `buffer`, that reaches the image.
  func expectWrite(sector: Int, from buffer: UInt64, seed: UInt64) throws {
    let data = DiskImage.pattern(0, count: 4096, seed: seed)
    try memory.write(data, at: buffer)
    let completion = try driver.run(DiskDriver.Request.write, sector: sector, [Piece(buffer, 4096, writable: false)])
    #expect(completion.status == 0)
    try expectSame(disk.image.read(sector, count: 4096), data)
  }

  /// A request that needs an address without a mapping: VT-d records the requester and the address, and the device
  /// claims no success.
  /// - `recorded`: off, where VT-d has the page in its own cache: it then refuses what the page does not allow, and
  ///   QEMU's records nothing.
  /// - Returns: whether the queue still runs (if not, only a reset helps).
  @discardableResult
  func expectRefused(
    _ type: UInt32 = DiskDriver.Request.read, sector: Int = 0, _ pieces: [Piece], at page: UInt64,
    recorded: Bool = true, sourceLocation: SourceLocation = #_sourceLocation
  ) throws -> Bool {
    _ = try vtd.takeFaults()
    let id = try driver.add(type, sector: sector, pieces)
    try driver.notify()
    var faults: [VTdFault] = []
    if recorded {
      try machine.qemu.wait(for: "fault at 0x\(String(page, radix: 16))") { () throws(QTestError) in
        faults += try vtd.takeFaults()
        return !faults.isEmpty
      }
    }
    var completion: DiskDriver.Completion?
    var needsReset = false
    try machine.qemu.wait(for: "end of the refused request") { () throws(QTestError) in
      completion = try driver.poll(id)
      needsReset = try disk.function.status() & VirtioFunction.Status.needsReset != 0
      return completion != nil || needsReset
    }
    faults += try vtd.takeFaults()
    #expect(
      faults.allSatisfy { $0.address == page && $0.requester == requester }, "\(faults)", sourceLocation: sourceLocation
    )
    // QEMU's own device drops the data and says "well"; a back-end that knows better must not.
    if backend != .qemu, let completion {
      #expect(completion.status != 0 && completion.written <= 1, "\(completion)", sourceLocation: sourceLocation)
    }
    return !needsReset
  }
}
