import DMA
import IOMMUInterface
import IOMMUs
import MachineKit
import NVMe
import PCI
import Storage
import Testing
import VirtioTestKit

@Suite("The IOMMU alone governs the controller", .timeLimit(.minutes(10))) struct GovernedTests {
  private let data = LiteralDriver.data
  private let offset: UInt64 = 0x20_0000_0000

  /// Everything that the literal driver uses, at an offset.
  private func mapped() -> PageDomain {
    let domain = PageDomain(of: Rig.requester)
    // Page by page, so that a page that is used for the first time is looked up.
    for at in stride(from: UInt64(0), to: 4 << 20, by: 4096) {
      domain.map(DMAAddress(offset + at), to: GuestAddress(at), count: 4096, permissions: .readWrite)
    }
    return domain
  }

  @Test("There is no option and no capability by which host or driver could choose its path (R080)")
  func noProperty() throws {
    let rig = try Rig()
    let names = Mirror(reflecting: NVMeOptions(.init(path: ""))).children.compactMap(\.label)
    #expect(names.sorted() == ["disks", "identity", "ioQueues", "maxTransfer", "offersSGLs", "queueSize", "vectors"])
    // One capability, MSI-X, and so none of virtio's.
    let at = Int(rig.access.readConfiguration(at: 0x34, width: 1))
    #expect(rig.access.readConfiguration(at: at, width: 2) == 0x0011)
  }

  @Test(
    "Without an IOMMU its addresses are physical, with one they are what that maps, whenever it came (R032, R080)",
    arguments: [false, true])
  func path(_ isLate: Bool) throws {
    let plain = try Rig()
    #expect(LiteralDriver.ready(plain, offset: 0).transfer(2, block: 0, blocks: 1, data) == 0)
    let iommu = mapped()
    let rig = try Rig(iommu: isLate ? nil : iommu.unit)
    if isLate { rig.bus.setIOMMU(iommu.unit) }
    let driver = LiteralDriver.ready(rig, offset: offset)
    rig.store(pattern(4096), at: data)
    #expect(
      driver.transfer(1, block: 7, blocks: 8, data + offset) == 0
        && driver.transfer(2, block: 7, blocks: 8, data + offset + 0x2000) == 0)
    #expect(rig.load(4096, at: data + 0x2000) == pattern(4096))
    #expect(iommu.lookUps > 0 && iommu.faults.isEmpty && rig.master.isBehindIOMMU)
    // Physical addresses mean nothing now, to any device.
    #expect(driver.transfer(2, block: 7, blocks: 8, data) == 0x004)
    #expect(iommu.faults == [DMAFault(address: DMAAddress(data), access: .write, reason: .unmapped)])
    for one in [plain, rig] { #expect(one.master.counts.physical == (0, 0, 0)) }
    // Look-ups are counted when the round ends, a little after its answers.
    #expect(rig.interrupts.poll { rig.master.counts.translated.misses > 0 } && rig.master.counts.translated.faults == 1)
  }

  @Test(
    "A page that may only be read ends a read, one that may only be written ends a write: one fault, and no byte is touched",
    arguments: [false, true])
  func permissions(_ isRead: Bool) throws {
    let iommu = mapped()
    let rig = try Rig(iommu: iommu.unit)
    let driver = LiteralDriver.ready(rig, offset: offset)
    rig.store([UInt8](repeating: 0xee, count: 0x3000), at: data)
    let bad = DMAAddress(offset + data + 0x1000)
    iommu.unmap(bad, count: 4096)
    iommu.map(bad, to: GuestAddress(data + 0x1000), count: 4096, permissions: isRead ? .read : .write)
    let opcode: UInt32 = isRead ? 2 : 1
    #expect(driver.transfer(opcode, block: 0, blocks: 16, data + offset, bad.rawValue) == 0x004)
    #expect(iommu.faults == [DMAFault(address: bad, access: isRead ? .write : .read, reason: .permission)])
    #expect(rig.load(0x3000, at: data) == [UInt8](repeating: 0xee, count: 0x3000))
    // The other direction may use it, and the disk has none of the refused write.
    if isRead {
      #expect(driver.transfer(1, block: 0, blocks: 16, data + offset, bad.rawValue) == 0)
    } else {
      #expect(
        driver.transfer(2, block: 0, blocks: 16, data + offset, bad.rawValue) == 0
          && rig.load(0x2000, at: data) == [UInt8](repeating: 0, count: 0x2000))
    }
  }

  @Test(
    "Queues that are unmapped make a fatal status and one fault; mapped again and reset, it works",
    arguments: [UInt64(0x3_0000), 0x3_1000])
  func queues(_ page: UInt64) throws {
    let iommu = mapped()
    let rig = try Rig(iommu: iommu.unit)
    let driver = LiteralDriver.ready(rig, offset: offset)
    iommu.unmap(DMAAddress(offset + page), count: 4096)
    driver.post(1, 0, namespace: 1, [])
    driver.ring(1)
    #expect(rig.interrupts.poll { rig.read32(0x1c) == 3 })
    #expect(iommu.faults.map(\.address) == [DMAAddress(offset + page)] && !driver.hasAnswer(1))
    iommu.map(DMAAddress(offset + page), to: GuestAddress(page), count: 4096, permissions: .readWrite)
    #expect(
      driver.disable() && LiteralDriver.ready(rig, offset: offset).transfer(2, block: 0, blocks: 1, data + offset) == 0)
  }

  @Test("When an unmapping returns, nothing of a command under way reaches the page any more")
  func invalidation() throws {
    let iommu = mapped()
    let rig = try Rig(iommu: iommu.unit)
    let page = DMAAddress(offset + data)
    for round in 0..<50 {
      let driver = LiteralDriver.ready(rig, offset: offset)
      for i in 0..<7 { driver.post(1, 2, namespace: 1, pointer1: page.rawValue, [(10, UInt32(i)), (12, 7)]) }
      driver.ring(1)
      for _ in 0..<round * 20 { _ = rig.read32(0x1c) }
      iommu.unmap(page, count: 4096)
      rig.store([UInt8](repeating: 0xee, count: 4096), at: data)
      let all = (0..<7).map { _ in driver.take(1)?.status }
      #expect(
        all.allSatisfy { $0 == 0 || $0 == 4 } && rig.load(4096, at: data) == [UInt8](repeating: 0xee, count: 4096))
      iommu.map(page, to: GuestAddress(data), count: 4096, permissions: .readWrite)
      #expect(driver.disable())
    }
  }

  @Test(
    "While storage is slow, unmaps of other pages take no time, and those of the command's own wait for it",
    .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
  func slow() throws {
    let storage = try SlowDisk(byteCount: 1 << 20, read: 400)
    let iommu = mapped()
    let rig = try Rig(iommu: iommu.unit) { $0.disk.path = storage.path }
    let driver = LiteralDriver.ready(rig, offset: offset)
    let page = DMAAddress(offset + data)
    let other = DMAAddress(offset + data + 0x8000)
    let before = iommu.lookUps
    let begun = ContinuousClock.now
    driver.post(1, 2, namespace: 1, pointer1: page.rawValue, [(10, 1024), (12, 7)])
    driver.ring(1)
    // The page is looked up before storage is asked.
    #expect(rig.interrupts.poll { iommu.lookUps > before })
    var worst = Duration.zero
    var count = 0
    while begun.duration(to: .now) < .milliseconds(300) {
      let one = ContinuousClock.now
      iommu.unmap(other, count: 4096)
      if count > 0 { worst = max(worst, one.duration(to: .now)) }
      count += 1
      iommu.map(other, to: GuestAddress(data + 0x8000), count: 4096, permissions: .readWrite)
    }
    // How many there is time for is the machine's; none of them may take as long as the storage.
    #expect(worst < .milliseconds(200) && count > 2, "\(count) unmaps, the slowest \(worst)")
    #expect(!driver.hasAnswer(1))
    iommu.unmap(page, count: 4096)
    #expect(begun.duration(to: .now) >= .milliseconds(390), "the command's own page was in use")
    #expect(driver.take(1)?.status == 0)
    #expect(rig.load(4096, at: data)[1000] == SlowDisk.byte(at: 1024 * 512 + 1000))
  }

  @Test(
    "VT-d's tables govern it: what they map is reached, what they do not is a recorded fault with its requester's number"
  )
  func vtd() throws {
    let memory = try GuestMemory(byteCount: 16 << 20)
    let unit = VTdUnit(memory, options: VTdOptions(), interrupt: { _ in })
    let rig = try Rig(memory: memory, iommu: unit)
    // Root table, context table of bus 0, and one table of each of four levels: the first 2 MiB at 0x40_0000.
    let (root, context, tables) = (UInt64(0xc0_0000), UInt64(0xc0_1000), UInt64(0xc0_2000))
    rig.store64(context | 1, at: root)
    let entry = context + UInt64(rig.requester.rawValue & 255) * 16
    rig.store64(tables | 1, 2 | 1 << 8, at: entry)
    for level in UInt64(0)..<3 {
      let index: UInt64 = level == 2 ? 2 : 0
      rig.store64((tables + (level + 1) * 0x1000) | 3, at: tables + level * 0x1000 + 8 * index)
    }
    for page in UInt64(0)..<512 where page != 0x105 { rig.store64(page * 4096 | 3, at: tables + 0x3000 + 8 * page) }
    unit.write(root, at: 0x20, width: 8)
    unit.write(1 << 30, at: 0x18, width: 4)
    unit.write(1 << 31, at: 0x18, width: 4)
    let driver = LiteralDriver.ready(rig, offset: 0x40_0000)
    rig.store(pattern(8192), at: data)
    #expect(driver.transfer(1, block: 0, blocks: 16, data + 0x40_0000, data + 0x40_1000) == 0)
    #expect(driver.transfer(2, block: 0, blocks: 16, data + 0x40_2000, data + 0x40_3000) == 0)
    #expect(rig.load(8192, at: data + 0x2000) == pattern(8192) && unit.read(at: 0x34, width: 4) & 2 == 0)
    #expect(driver.transfer(2, block: 0, blocks: 16, data + 0x40_4000, data + 0x40_5000) == 0x004)
    #expect(rig.load(4096, at: data + 0x4000) == [UInt8](repeating: 0, count: 4096))
    // Primary pending fault; the record names the page and who it was.
    #expect(unit.read(at: 0x34, width: 4) & 2 == 2)
    let record = Int(unit.read(at: 0x08, width: 8) >> 24 & 0x3ff) * 16
    #expect(unit.read(at: record, width: 8) == data + 0x40_5000)
    #expect(unit.read(at: record + 8, width: 8) & 0xffff == UInt64(rig.requester.rawValue))
    #expect(rig.master.counts.physical == (0, 0, 0))
  }
}
