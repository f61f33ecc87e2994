import DMA
import HostIO
import Testing
import Virtio
import VirtioTestKit

@Suite("The dirty log counts guest pages") struct DirtyLogTests {
  /// The pages that are marked, and forgets them.
  private func marked(_ bits: HostMapping) -> Set<Int> {
    let bytes = bits.bytes(bits.byteCount)
    #expect(bits.copy([UInt8](repeating: 0, count: bytes.count).span, to: 0) == bytes.count)
    return Set(bytes.indices.flatMap { byte in (0..<8).filter { bytes[byte] >> $0 & 1 == 1 }.map { byte * 8 + $0 } })
  }

  /// The log of memory in which a device copied a chain.
  private func copied(_ memory: GuestMemory, _ chain: [LiteralDescriptor]) throws -> HostMapping {
    let bits = try HostMapping(anonymous: 4096)
    memory.setDirtyLog(DirtyLog(bits: bits, memory: memory))
    try PlainRig(memory, in: PhysicalSpace(memory)).run(chain)
    return bits
  }

  private func page(_ rig: Rig, _ address: UInt64) -> Int {
    Int(rig.literal.guestAddress(DMAAddress(address)).rawValue >> 12)
  }

  @Test(
    "Buffers and rings are marked by guest page, whatever addresses the device uses, mappings made later included (R132, R134, R138)",
    arguments: [false, true])
  func translated(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    rig.expectWorks()
    let bits = try rig.log()
    let from = rig.allocate(pages: 1)
    // Mapped after logging began.
    let to = rig.allocate(pages: 3)
    #expect(rig.run([rig.read(from, 4096), rig.write(to + 100, 4096)]).map(\.length) == [4096])
    let pages = marked(bits)
    #expect(pages.isSuperset(of: [page(rig, to), page(rig, to + 4096)]))
    #expect(!pages.contains(page(rig, from)), "reading marks nothing")
    #expect(!pages.contains(page(rig, to + 8192)), "nor do bytes that were not reached")
    #expect(pages.contains(page(rig, packed ? rig.layout.descriptorArea.rawValue : rig.layout.deviceArea.rawValue)))
    rig.memory.setDirtyLog(nil)
    rig.run([rig.read(from, 8), rig.write(to, 8)])
    #expect(marked(bits).isEmpty)
  }

  @Test("A used ring over several scattered pages is marked page by page (R134, R135)")
  func usedRing() throws {
    let rig = try Rig(packed: false, size: 1024)
    let bits = try rig.log()
    let from = rig.allocate(pages: 1)
    let area = rig.layout.deviceArea.rawValue
    var seen: Set<Int> = []
    for _ in 0..<1024 {
      rig.run([rig.read(from, 1)])
      seen.formUnion(marked(bits))
    }
    // Flags, index and 1024 entries of 8 bytes: three pages.
    #expect(seen.isSuperset(of: [page(rig, area), page(rig, area + 4096), page(rig, area + 8192)]))
  }

  @Test("A page that is visible at several guest addresses is marked at each (R133)")
  func aliases() throws {
    let file = try MemoryFile(name: "aliases", size: 64 << 10)
    let memory = GuestMemory()
    for guest in [0, 1 << 20] as [UInt64] {
      let mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 64 << 10)
      try memory.add(guest, byteCount: 64 << 10, mapping)
    }
    let bits = try copied(
      memory, [LiteralDescriptor(DMAAddress(0x8000), 4), LiteralDescriptor(DMAAddress(0x9000), 4, writable: true)])
    #expect(marked(bits).isSuperset(of: [9, 256 + 9]))
  }

  @Test(
    "A run that goes on in another region, whose mapping adjoins, is marked in both (R132)", arguments: [false, true])
  func adjoining(_ isAscending: Bool) throws {
    let mapping = try HostMapping(anonymous: 128 << 10)
    let memory = GuestMemory()
    // Side by side in the guest and in this process, in any order of their making.
    for half in isAscending ? [0, 1] : [1, 0] as [UInt64] {
      let at = half * 64 << 10
      try memory.add(at, byteCount: 64 << 10, mapping, at: at)
    }
    let bits = try copied(
      memory,
      [LiteralDescriptor(DMAAddress(0x5000), 0x4000), LiteralDescriptor(DMAAddress(0xe000), 0x4000, writable: true)])
    #expect(marked(bits).isSuperset(of: [14, 15, 16, 17]))
    #expect(marked(bits).isEmpty)
  }

  @Test(
    "A chain taken before logging begins and given back afterwards is marked, with its ring (R132)",
    arguments: [false, true])
  func switchedOn(packed: Bool) throws {
    let memory = try GuestMemory(byteCount: 64 << 10)
    let features: Features = packed ? [.version1, .ringPacked] : .version1
    let (layout, _) = literalLayout(size: 8, packed: packed, at: 0x1000)
    let ring = makeLiteralRing(layout, features: features, in: LiteralMemory(memory))
    let space = PhysicalSpace(memory)
    var queue = try Virtqueue(index: 0, layout: layout, features: features, in: space)
    _ = ring.post([LiteralDescriptor(DMAAddress(0x9000), 0x2000, writable: true)])
    ring.publish()
    try queue.beginRound()
    guard let chain = try queue.next() else { return #expect(Bool(false)) }
    queue.endRound()
    let bits = try HostMapping(anonymous: 4096)
    let log = DirtyLog(bits: bits, memory: memory)
    let before = space.fence.generation
    let control = try WorkerThread(name: "control") { memory.setDirtyLog(log) }
    _ = eventually { space.fence.generation != before }
    try queue.beginRound()
    queue.complete(chain, written: 0x2000)
    queue.endRound()
    control.join()
    #expect(
      marked(bits).isSuperset(of: [9, 10, Int((packed ? layout.descriptorArea : layout.deviceArea).rawValue >> 12)]))
  }

  @Test("Pages beyond the end of the log are dropped; nothing else is written (R136)")
  func short() throws {
    let rig = try Rig(packed: false)
    // Room for the lowest eight pages; the rig's memory is given out from the top.
    let bits = try rig.log(bytes: 1)
    rig.expectWorks()
    #expect(marked(bits).isEmpty && rig.harness.failures.isEmpty)
  }

  @Test(
    "A ring that is gone when logging begins or ends is skipped, and the log is still set (R137)",
    arguments: [false, true])
  func unmappedRing(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    rig.expectWorks()
    rig.space.unmap(rig.layout.deviceArea, byteCount: 4096)
    let bits = try rig.log()
    rig.harness.kick(0)
    #expect(rig.harness.hasFailed(0) && marked(bits).isEmpty)
    rig.memory.setDirtyLog(nil)
    try rig.renew()
    rig.expectWorks()
  }
}
