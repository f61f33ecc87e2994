import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import IOMMUs
import MachineKit
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioMMIO
import VirtioTestKit

/// The driver of a TCE table: hypercalls, a page at a time.
private final class TCEDriver: IOMMUDomain {
  private let table: TCETable
  init(_ table: TCETable) { self.table = table }

  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    let entries = (0..<count / 4096).map { guest.rawValue + 4096 * $0 | UInt64(permissions.rawValue) }
    do throws(TCETable.HypercallError) { try table.put(address, entries) } catch { throw .iommu(address) }
  }
  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    do throws(TCETable.HypercallError) { try table.stuff(address, 0, count: Int(count / 4096)) } catch {
      throw .iommu(address)
    }
  }
}

@Suite("Drivers of memory-mapped devices", .timeLimit(.minutes(10))) struct BoardDriverTests {
  enum Way: Sendable, CaseIterable { case translated, flat, physical, legacy }

  private func rig(_ device: any VirtioDevice, _ way: Way) throws -> (BoardRig, DriverPlatform, TCETable) {
    let rig = try BoardRig(device, way == .legacy ? .old : way == .physical ? VirtioMMIOOptions() : .platform)
    let table = TCETable(pages: 4096)
    if way != .flat { rig.endpoint.setIOMMU(table) }
    let pages = GuestPages(rig.memory, at: GuestAddress(1 << 20), byteCount: 8 << 20)
    let mapper = IOMMUMapper(TCEDriver(table), addresses: IOVAAllocator(aperture: 0x1000...0xff_ffff), pages: pages)
    return (rig, DriverPlatform(pages: pages, mapper: way == .flat ? nil : mapper), table)
  }

  private func options(_ rig: BoardRig, packed: Bool) -> DriverOptions {
    DriverOptions(
      queue: QueueOptions(size: 16, segments: 4), withheld: packed ? [] : .ringPacked, wait: rig.interrupts.bounded)
  }

  @Test(
    "A disk is written and read, translated, flat, past the IOMMU and by a legacy driver (R006, R025, R033, R034)",
    arguments: Way.allCases, [false, true])
  func block(_ way: Way, _ packed: Bool) throws {
    let file = try MemoryFile(name: "disk", size: 1 << 20)
    let (rig, platform, table) = try rig(try BlockDevice(BlockOptions(inMemory: file)), way)
    let driver = try BlockDriver(rig.driver(), on: platform, options: options(rig, packed: packed))
    #expect(driver.capacity == 2048)
    #expect(driver.features.contains(.accessPlatform) == (way == .translated || way == .flat))
    #expect(driver.features.contains(.anyLayout) == (way == .legacy))
    let buffer = try platform.pages.allocate(8192)
    let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 / 256) }
    for round in 0..<20 {
      let sector = UInt64(round * 16)
      let sent = bytes.map { $0 &+ UInt8(round) }
      #expect(rig.memory.copy(sent.span, to: buffer) == 8192)
      try driver.write(
        sector, from: [GuestSegment(buffer, count: 4096), GuestSegment(buffer + 4096, count: 4096)].span)
      #expect(rig.memory.copy([UInt8](repeating: 0, count: 8192).span, to: buffer) == 8192)
      try driver.read(sector, into: [GuestSegment(buffer, count: 8192)].span)
      #expect(LiteralMemory(rig.memory).read(8192, at: DMAAddress(buffer.rawValue)) == sent)
    }
    try driver.flush()
    try driver.stop()
    let counts = rig.endpoint.counts
    #expect((counts.translated.misses > 0) == (way == .translated || way == .flat))
    #expect((counts.physical.misses > 0) == (way == .physical || way == .legacy))
    #expect(table.faults == 0)
  }

  @Test(
    "Random bytes come, translated, flat, past the IOMMU and to a legacy driver", arguments: Way.allCases,
    [false, true])
  func entropy(_ way: Way, _ packed: Bool) throws {
    let (rig, platform, table) = try rig(EntropyDevice(), way)
    let driver = try EntropyDriver(rig.driver(), on: platform, options: options(rig, packed: packed))
    let buffer = try platform.pages.allocate(4096)
    var seen: Set<[UInt8]> = []
    for _ in 0..<20 {
      let count = try driver.fill([GuestSegment(buffer + 100, count: 64)].span)
      #expect(count == 64)
      seen.insert(LiteralMemory(rig.memory).read(64, at: DMAAddress(buffer.rawValue + 100)))
      #expect(LiteralMemory(rig.memory).read(4, at: DMAAddress(buffer.rawValue + 164)) == [0, 0, 0, 0])
    }
    #expect(seen.count == 20)
    try driver.stop()
    #expect(table.faults == 0)
    #expect((rig.endpoint.counts.translated.misses > 0) == (way == .translated || way == .flat))
  }
}

@Suite("A driver and a memory-mapped device that lies") struct LyingDeviceTests {
  /// Registers that answer as a test says, and are 0 otherwise.
  private final class Registers: MMIORegisterAccess {
    var answers: [UInt64: UInt32]
    private(set) var reads = 0
    private(set) var written: [(UInt64, UInt32)] = []
    init(_ answers: [UInt64: UInt32]) { self.answers = [0: 0x7472_6976, 4: 2, 8: 4].merging(answers) { $1 } }
    func read(at offset: UInt64, width: Int) -> UInt32 {
      reads += 1
      return answers[offset] ?? 0
    }
    func write(at offset: UInt64, width: Int, _ value: UInt32) { written.append((offset, value)) }
  }

  @Test("What is no device, of another version, or a placeholder is left alone after the first three registers")
  func discovery() throws {
    for (answers, error) in [
      ([UInt64(0): UInt32(0)], MMIOTransportError.notVirtio(magic: 0)), ([0: .max], .notVirtio(magic: .max)),
      ([4: 0], .version(0)),
      ([4: 3], .version(3)), ([8: 0], .noDevice),
    ] {
      let registers = Registers(answers)
      #expect(throws: error) { _ = try MMIODriverTransport(registers) }
      #expect(registers.written.isEmpty && registers.reads <= 3)
    }
  }

  @Test(
    "A queue reset that never ends, a queue of any size and a status of all ones end a driver's patience, not its life")
  func lies() throws {
    let registers = Registers([0x034: .max, 0x060: .max, 0x070: .max, 0x0c0: 1, 0x044: 1, 0x010: .max])
    let transport = try MMIODriverTransport(registers)
    #expect(transport.maxQueueSize(0) == 32768)
    #expect(transport.takeInterrupts() == 3)
    #expect(registers.written.last?.0 == 0x064 && registers.written.last?.1 == 3, "undefined bits are not acknowledged")
    transport.resetQueue(0)
    #expect(!transport.disableQueue(0))
    let memory = try GuestMemory(byteCount: 1 << 20)
    let platform = DriverPlatform(pages: GuestPages(memory, at: GuestAddress(0), byteCount: 1 << 20))
    #expect(throws: DriverError.reset(DeviceStatus(rawValue: 0xff))) {
      _ = try EntropyDriver(transport, on: platform, options: DriverOptions(wait: BoundedWait(attempts: 10)))
    }
  }

  @Test("A driver uses 32-bit, aligned accesses for registers, each in its direction only")
  func accesses() throws {
    let rig = try BoardRig(EntropyDevice(), .platform)
    let transport = try rig.driver()
    let platform = DriverPlatform(pages: GuestPages(rig.memory, at: GuestAddress(1 << 20), byteCount: 8 << 20))
    let driver = try EntropyDriver(
      transport, on: platform,
      options: DriverOptions(wait: BoundedWait(attempts: 1_000_000) { _ = rig.interrupts.isLineAsserted }))
    let buffer = try platform.pages.allocate(4096)
    #expect(try driver.fill([GuestSegment(buffer, count: 8)].span) == 8)
    try driver.stop()
    let readable: Set<UInt64> = [
      0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x044, 0x060, 0x070, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0c0, 0x0fc,
    ]
    let writable: Set<UInt64> = [
      0x014, 0x020, 0x024, 0x030, 0x038, 0x044, 0x050, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0ac,
      0x0c0,
    ]
    #expect(rig.window.accesses.count > 20)
    for one in rig.window.accesses where one.at < 0x100 {
      #expect(one.width == 4 && (one.isWrite ? writable : readable).contains(one.at), "\(one)")
    }
  }
}
