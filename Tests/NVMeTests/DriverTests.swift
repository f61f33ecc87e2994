import DMA
import DriverDMA
import Foundation
import IOMMUInterface
import MachineKit
import NVMe
import PCI
import Storage
import Testing
import VirtioTestKit

@Suite("Our driver and our controller", .timeLimit(.minutes(10))) struct DriverTests {
  struct Case: CustomStringConvertible, Sendable {
    var format: NVMeDataFormat
    var isTranslated: Bool
    var hasMessages: Bool
    /// Doorbells in memory.
    var hasShadow = false
    var description: String {
      """
      \(format) \(isTranslated ? "translated" : "physical") \(hasMessages ? "messages" : "polling") \
      \(hasShadow ? "shadow doorbells" : "registers")
      """
    }
    static let all = [NVMeDataFormat.prp, .sgl].flatMap { format in
      [false, true].flatMap { translated in
        [false, true].flatMap { messages in
          [false, true].map { Case(format: format, isTranslated: translated, hasMessages: messages, hasShadow: $0) }
        }
      }
    }
  }

  private func driver(
    _ rig: Rig, _ mapper: any DMAMapper, _ format: NVMeDataFormat = .prp, messages: Bool = false, queues: Int = 1,
    shadow: Bool = false
  ) throws -> NVMeDriver {
    let all = (0...UInt32(queues)).map { InterruptMessage(address: 0xfee0_0000, data: 0x30 + $0) }
    var options = NVMeDriverOptions(
      queues: queues, format: format, messages: messages ? all : [],
      wait: BoundedWait(attempts: 20_000) { rig.interrupts.pause() })
    options.usesShadowDoorbells = shadow
    return try NVMeDriver(rig.access, mapper: mapper, options: options)
  }

  @Test(
    "What is written comes back, in pieces over pages, with PRPs and SGLs, translated and physical", arguments: Case.all
  )
  func data(_ kind: Case) throws {
    let iommu = PageDomain(of: Rig.requester)
    let rig = try Rig(iommu: kind.isTranslated ? iommu.unit : nil)
    let pages = rig.pages
    let mapper: any DMAMapper =
      kind.isTranslated
      ? IOMMUMapper(iommu, addresses: IOVAAllocator(aperture: 0x1_0000_0000...0x1_ffff_ffff), pages: pages)
      : DirectMapper(pages)
    let free = pages.freeBytes
    let driver = try driver(rig, mapper, kind.format, messages: kind.hasMessages, shadow: kind.hasShadow)
    #expect(
      driver.blockCount == Rig.diskBytes / 512 && driver.blockSize == 512 && driver.serialNumber == "S-1"
        && driver.canWriteZeroes)
    let bytes = pattern(40_960)
    rig.store(bytes, at: 0x10_0000)
    // The first piece begins inside a page, the last ends inside one.
    let from = [
      GuestSegment(GuestAddress(0x10_0000 + 512), count: 3584), GuestSegment(GuestAddress(0x10_1000), count: 8192),
      GuestSegment(GuestAddress(0x10_3000), count: 16384), GuestSegment(GuestAddress(0x10_7000), count: 512),
    ]
    try driver.write(77, from: from.span)
    let into = [GuestSegment(GuestAddress(0x20_0000 + 512), count: 28_672)]
    try driver.read(77, into: into.span)
    #expect(rig.load(28_672, at: 0x20_0200) == Array(bytes[512..<512 + 28_672]))
    #expect(
      rig.load(512, at: 0x20_0000) == [UInt8](repeating: 0, count: 512)
        && rig.load(512, at: 0x20_7200) == [UInt8](repeating: 0, count: 512))
    try driver.flush()
    try driver.writeZeroes(NVMeRange(78, blockCount: 2))
    try driver.read(77, into: into.span)
    #expect(
      rig.load(512, at: 0x20_0200) == Array(bytes[512..<1024])
        && rig.load(1024, at: 0x20_0400) == [UInt8](repeating: 0, count: 1024))
    if driver.canDeallocate {
      try driver.deallocate([NVMeRange(80, blockCount: 8)].span, using: GuestAddress(0x30_0000))
    }
    #expect(rig.interrupts.data.isEmpty != kind.hasMessages)
    #expect((iommu.lookUps > 0) == kind.isTranslated && iommu.faults.isEmpty)
    // Never past the IOMMU: the other space was not even asked.
    #expect(rig.master.counts.physical == (0, 0, 0) && rig.master.counts.translated.faults == 0)
    try driver.stop()
    #expect(driver.status == [] && pages.freeBytes == free)
    #expect(throws: NVMeDriverError.stopped) { try driver.flush() }
  }

  @Test("PRPs refuse data that is cut inside a page, and SGLs take it", arguments: [NVMeDataFormat.prp, .sgl])
  func cuts(_ format: NVMeDataFormat) throws {
    let rig = try Rig()
    let driver = try driver(
      rig, DirectMapper(rig.pages), format)
    rig.store(pattern(1024), at: 0x10_0000)
    let data = [GuestSegment(GuestAddress(0x10_0000), count: 300), GuestSegment(GuestAddress(0x10_012c), count: 724)]
    if format == .prp {
      #expect(throws: NVMeDriverError.alignment(DMAAddress(0x10_012c))) { try driver.write(0, from: data.span) }
      #expect(driver.outstanding == 0)
    } else {
      try driver.write(0, from: data.span)
      try driver.read(0, into: [GuestSegment(GuestAddress(0x11_0003), count: 1024)].span)
      #expect(rig.load(1024, at: 0x11_0003) == pattern(1024))
    }
    #expect(throws: NVMeDriverError.request) {
      try driver.read(Rig.diskBytes / 512, into: [GuestSegment(GuestAddress(0x10_0000), count: 512)].span)
    }
    #expect(throws: NVMeDriverError.request) {
      try driver.read(0, into: [GuestSegment(GuestAddress(0x10_0000), count: 500)].span)
    }
  }

  @Test(
    "Through a pool that alone is shared with the controller, data is copied, and comes back whole",
    arguments: [NVMeDataFormat.prp, .sgl])
  func bounce(_ format: NVMeDataFormat) throws {
    let iommu = PageDomain(of: Rig.requester)
    let rig = try Rig(iommu: iommu.unit)
    let pages = GuestPages(rig.memory, at: GuestAddress(0x40_0000), byteCount: 8 << 20)
    let shared = IOMMUMapper(iommu, addresses: IOVAAllocator(aperture: 0x1_0000_0000...0x1_ffff_ffff), pages: pages)
    let mapper = try BounceMapper(over: shared, poolSize: 2 << 20)
    let looksBefore = iommu.lookUps
    let driver = try driver(rig, mapper, format)
    rig.store(pattern(8192), at: 0x10_0000)
    try driver.write(5, from: [GuestSegment(GuestAddress(0x10_0000), count: 8192)].span)
    try driver.read(5, into: [GuestSegment(GuestAddress(0x12_0000), count: 8192)].span)
    #expect(rig.load(8192, at: 0x12_0000) == pattern(8192) && iommu.faults.isEmpty && iommu.lookUps > looksBefore)
    try driver.stop()
  }

  @Test(
    "An image that is locked while it is used is locked from enabling to reset, and a second controller fails meanwhile"
  )
  func lock() throws {
    let host = FileManager.default.temporaryDirectory.appendingPathComponent("sluice-nvme-\(UUID().uuidString).img")
      .path
    try #require(FileManager.default.createFile(atPath: host, contents: Data(count: 1 << 20)))
    defer { try? FileManager.default.removeItem(atPath: host) }
    func rig() throws -> Rig {
      try Rig {
        $0.disk = DiskOptions(path: host)
        $0.disk.lock = .running
      }
    }
    let (first, second) = (LiteralDriver(try rig()), LiteralDriver(try rig()))
    #expect(first.enable() && !second.enable() && second.rig.read32(0x1c) == 2)
    #expect(first.disable() && second.disable())
    #expect(second.rig.interrupts.poll { second.rig.read32(0x1c) == 0 })
    #expect(second.enable() && !first.enable())
  }

  @Test(
    "Several queues with many commands under way, round after round: each gets its own bytes",
    arguments: [false, true])
  func manyQueues(_ shadow: Bool) throws {
    let rig = try Rig()
    let driver = try driver(
      rig, DirectMapper(rig.pages), messages: true,
      queues: 3, shadow: shadow)
    #expect(driver.queueCount == 3)
    for round in 0..<6 {
      var tags: [NVMeTag] = []
      for i in 0..<60 {
        let at = 0x10_0000 + UInt64(i) * 4096
        rig.store(pattern(1024, seed: i + round), at: at)
        tags.append(
          try driver.submitWrite(UInt64(i) * 2, from: [GuestSegment(GuestAddress(at), count: 1024)].span, queue: i % 3))
      }
      for tag in tags.reversed() { #expect(try driver.complete(tag).error == nil) }
      tags = try (0..<60).map { i in
        try driver.submitRead(
          UInt64(i) * 2, into: [GuestSegment(GuestAddress(0x20_0000 + UInt64(i) * 4096), count: 1024)].span,
          queue: (i + 1) % 3)
      }
      for tag in tags { #expect(try driver.complete(tag).error == nil) }
      for i in 0..<60 { #expect(rig.load(1024, at: 0x20_0000 + UInt64(i) * 4096) == pattern(1024, seed: i + round)) }
    }
    #expect(Set(rig.interrupts.data).isSuperset(of: [0x30, 0x31, 0x32, 0x33]))
  }

  @Test("Without an answer, without a controller, without mappings: an error in bounded time, never a hang")
  func troubles() throws {
    let iommu = PageDomain(of: Rig.requester)
    let rig = try Rig(iommu: iommu.unit)
    let pages = rig.pages
    // Nothing is mapped: the controller cannot reach its queues.
    #expect(throws: NVMeDriverError.fatal) { try self.driver(rig, DirectMapper(pages)) }
    #expect(!iommu.faults.isEmpty)
    rig.bus.setIOMMU(nil)
    let driver = try self.driver(rig, DirectMapper(pages))
    rig.setCommand([.memorySpace])
    #expect(throws: NVMeDriverError.fatal) { try driver.flush() }
    rig.bus.remove(rig.controller)
    #expect(throws: NVMeDriverError.notReady(NVMeControllerStatus(rawValue: .max))) { try driver.stop() }
    #expect(throws: NVMeDriverError.notNVMe(classCode: 0xff_ffff)) { try self.driver(rig, DirectMapper(pages)) }
  }
}
