import HostIO
import Testing
import VirtioTestKit

@testable import DMA

@Suite("Guest memory") struct GuestMemoryTests {
  @Test("Regions that overlap, wrap, are empty or outgrow their mapping are refused, and nothing changes")
  func refused() throws {
    let memory = GuestMemory()
    let mapping = try HostMapping(anonymous: 65536)
    func region(_ guest: UInt64) -> MemoryRegion {
      MemoryRegion(guestAddress: GuestAddress(guest), byteCount: 9, mapping: mapping)
    }
    try memory.add(0x10000, byteCount: 0x8000, mapping)
    for guest in [0x17fff, 0xf001, 0x10000] as [UInt64] {
      #expect(throws: MemoryRegionError.overlap) { try memory.add(guest, byteCount: 0x1000, mapping) }
    }
    for (guest, count, offset) in [
      (0, 0, 0), (.max, 2, 0), (0, 65537, 0), (0, 65536, 1), (0, 1, .max),
    ] as [(UInt64, UInt64, UInt64)] {
      #expect(throws: MemoryRegionError.malformed) { try memory.add(guest, byteCount: count, mapping, at: offset) }
    }
    #expect(memory.regions.count == 1 && memory.byteCount == 0x8000)
    // Right beside it is fine, and so is the end of the address space.
    try memory.add(0x18000, byteCount: 0x1000, mapping, at: 0x8000)
    try memory.add(.max - 0xfff, byteCount: 0x1000, mapping, at: 0x9000)
    #expect(memory.regions.map(\.guestAddress.rawValue) == [0x10000, 0x18000, .max - 0xfff])
    #expect(memory.run(at: GuestAddress(.max))?.byteCount == 0x1000)
    #expect(throws: MemoryRegionError.missing) {
      try memory.remove(
        guestAddress: GuestAddress(0x10000), byteCount: 0x7000)
    }
    #expect(throws: MemoryRegionError.overlap) { try memory.replace(with: [region(0), region(8)]) }
    #expect(memory.regions.count == 3)
    try memory.replace(with: [region(0)])
    #expect(memory.byteCount == 9)
  }

  @Test("Copies go across regions that touch, and end where memory does")
  func copies() throws {
    let memory = GuestMemory()
    let mapping = try HostMapping(anonymous: 65536)
    try memory.add(0x1000, byteCount: 0x1000, mapping, at: 0x4000)
    try memory.add(0x2000, byteCount: 0x1000, mapping)
    let bytes = (0..<200).map { UInt8($0) }
    #expect(memory.copy(bytes.span, to: GuestAddress(0x2000 - 100)) == 200)
    var read = memory.bytes(300, at: GuestAddress(0x2000 - 100))
    #expect(read == bytes + [UInt8](repeating: 0, count: 100))
    var span = read.mutableSpan
    #expect(memory.copy(from: GuestAddress(0x3000 - 10), into: &span) == 10)
    #expect(memory.copy(bytes.span, to: GuestAddress(0x3000)) == 0)
    let straddling = memory.cells(at: GuestAddress(0x1ff8), byteCount: 16) != nil
    #expect(!straddling, "cells do not straddle regions")
  }

  @Test("Removing a region waits until no queue uses it, and then it faults (R069)")
  func removal() throws {
    let memory = GuestMemory()
    try memory.add(0, byteCount: 65536)
    let space = PhysicalSpace(memory)
    var cache = IOTLB(space)
    var pool = SegmentPool()
    _ = cache.beginRound()
    var list = pool.take()
    try cache.resolve(DMAAddress(100), count: 10, for: .write, into: &list)
    let thread = WorkThread { try? memory.remove(0, byteCount: 65536) }
    while !cache.isStale { thread.pause() }
    #expect(!thread.isDone)
    // Still ours to write to: the mapping lives.
    let side = list.readable
    #expect(side.copy([1, 2, 3].span, to: 0) == 3)
    cache.endRound()
    #expect(thread.join())
    _ = cache.beginRound()
    #expect(throws: DMAInterruption.fault(DMAFault(address: DMAAddress(100), access: .write, reason: .unmapped))) {
      try cache.resolve(DMAAddress(100), count: 10, for: .write, into: &list)
    }
    cache.endRound()
  }

  @Test("A page that its owner cut off is mended on a worker thread too, where other signals are blocked")
  func truncatedBehindAWorker() throws {
    let file = try MemoryFile(name: "cut", size: 8192)
    let mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 8192)
    try file.resize(to: 4096)
    let thread = try WorkerThread(name: "test-cut") { _ = mapping.copy([7].span, to: 5000) }
    thread.join()
    #expect(mapping.lostPages == 1)
  }

  @Test("A file that its owner cut short reads as zeroes and is counted; the process lives")
  func truncated() throws {
    let file = try MemoryFile(name: "cut", size: 16384)
    let mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 16384)
    let memory = GuestMemory()
    try memory.add(0, byteCount: 16384, mapping)
    memory.write([UInt8](repeating: 9, count: 16384), at: GuestAddress(0))
    try file.resize(to: 4096)
    let read = memory.bytes(16384, at: GuestAddress(0))
    #expect(read == [UInt8](repeating: 9, count: 4096) + [UInt8](repeating: 0, count: 12288))
    #expect(memory.lostPages == 3)
    // Writing there is lost and harmless.
    #expect(memory.copy([7].span, to: GuestAddress(16000)) == 1)
    guard let cells = mapping.cells(from: 8192, byteCount: 64) else { return #expect(Bool(false), "no cells") }
    cells.store16(5, at: 0)
    #expect(cells.load16(at: 0) == 5)
  }

  @Test("The dirty log marks the pages written, at every address that shows them, and drops what is past its end")
  func dirtyLog() throws {
    let file = try MemoryFile(name: "twice", size: 65536)
    let first = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 65536)
    let second = try HostMapping(descriptor: file.descriptor.rawValue, offset: 8192, byteCount: 16384)
    let memory = GuestMemory()
    try memory.add(0, byteCount: 65536, first)
    // Pages 2…5 of the file again, at guest page 100.
    try memory.add(100 * 4096, byteCount: 16384, second)
    let bits = try HostMapping(anonymous: 13)
    let space = PhysicalSpace(memory)
    memory.setDirtyLog(DirtyLog(bits: bits, memory: memory))
    var cache = IOTLB(space)
    var pool = SegmentPool()
    _ = cache.beginRound()
    let current = cache.dirtyLog
    let log = try #require(current)
    var list = pool.take()
    // Bytes 3 pages long in part: the end of page 1 to the beginning of page 3.
    try cache.resolve(DMAAddress(8190), count: 4100, for: .write, into: &list)
    let side = list.readable
    side.markDirty(log, count: 4100)
    cache.endRound()
    var expected = [UInt8](repeating: 0, count: 13)
    for page in [1, 2, 3, 100, 101] { expected[page / 8] |= 1 << UInt8(page % 8) }
    #expect(bits.bytes(13) == expected)
    // Guest page 104 and later have no bit (13 bytes are 104 bits): dropped, not written elsewhere.
    _ = cache.beginRound()
    var beyond = pool.take()
    try cache.resolve(DMAAddress(103 * 4096), count: 4096, for: .write, into: &beyond)
    let more = beyond.readable
    more.markDirty(log, count: 4096)
    cache.endRound()
    memory.setDirtyLog(nil)
  }
}

@Suite("Buffer segments") struct BufferSegmentsTests {
  @Test("Copies, integers and splits work across segments as on one run of bytes")
  func againstBytes() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    let space = PagedSpace(memory, granule: 64)
    var random = SeededGenerator(11)
    var pool = SegmentPool()
    var cache = IOTLB(space)
    for trial in 0..<60 {
      // A chain of scattered 64-byte runs.
      let runs = Int.random(in: 1...40, using: &random)
      let base = UInt64(trial) << 20
      for i in 0..<runs {
        space.map(
          DMAAddress(base + UInt64(i) * 64), byteCount: 64, to: GuestAddress(UInt64((i * 37 + trial) % 4096) * 128))
      }
      _ = cache.beginRound()
      var list = pool.take()
      let skip = Int.random(in: 0..<64, using: &random)
      let count = runs * 64 - skip
      if count > 0 { try cache.resolve(DMAAddress(base + UInt64(skip)), count: count, for: .write, into: &list) }
      var side = list.readable
      #expect(side.byteCount == count)
      var model = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ trial) }
      let n = side.copy(model.span, to: 0)
      #expect(n == count)
      for _ in 0..<20 {
        let at = Int.random(in: -2...count + 2, using: &random)
        switch Int.random(in: 0..<5, using: &random) {
        case 0:
          let value = side.read(UInt64.self, at: at)
          let fits = at >= 0 && at + 8 <= count
          let expected = fits ? (0..<8).reduce(UInt64(0)) { $0 | UInt64(model[at + $1]) << UInt64(8 * $1) } : nil
          #expect(value == expected)
        case 1:
          let done = side.write(UInt32(0xdead_beef), at: at)
          #expect(done == (at >= 0 && at + 4 <= count))
          if done { for i in 0..<4 { model[at + i] = UInt8(truncatingIfNeeded: UInt32(0xdead_beef) >> UInt32(8 * i)) } }
        case 2:
          let length = Int.random(in: 0...100, using: &random)
          let done = side.zero(from: at, count: length)
          let expected = at < 0 || at >= count ? 0 : min(length, count - at)
          #expect(done == expected)
          for i in 0..<expected { model[at + i] = 0 }
        case 3:
          let length = Int.random(in: 0...200, using: &random)
          var part = [UInt8](repeating: 0xEE, count: length)
          var done = 0
          do {
            var span = part.mutableSpan
            done = side.copy(from: at, into: &span)
          }
          let expected = at < 0 || at >= count ? 0 : min(length, count - at)
          #expect(done == expected)
          #expect(Array(part[..<done]) == (done == 0 ? [] : Array(model[at..<at + done])))
        default:
          let before = side.segmentCount
          let index = side.split(at: at)
          if at < 0 || at > count {
            #expect(index == nil)
          } else if let index {
            #expect(index <= side.segmentCount && side.segmentCount <= before + 1)
          }
        }
      }
      let all = side.bytes()
      #expect(all == model)
      #expect(side.byteCount == count)
      pool.give(back: list)
      cache.endRound()
    }
  }

  @Test("Two splits a side leave both sides of a chain whole")
  func splits() throws {
    let memory = try GuestMemory(byteCount: 65536)
    var cache = IOTLB(PhysicalSpace(memory))
    var pool = SegmentPool()
    _ = cache.beginRound()
    var list = pool.take()
    try cache.resolve(DMAAddress(0), count: 100, for: .read, into: &list)
    list.beginWritable()
    try cache.resolve(DMAAddress(1000), count: 200, for: .write, into: &list)
    var read = list.readable
    var written = list.writable
    #expect(read.split(at: 16) == 1)
    #expect(read.split(at: 60) == 2)
    #expect(read.split(at: 70) == nil, "no room for a third")
    #expect(read.split(at: 60) == 2, "a boundary costs nothing")
    #expect(written.split(at: 199) == 1)
    #expect(written.split(at: 200) == 2)
    let one = [UInt8](0..<100)
    let n = read.copy(one.span, to: 0)
    let m = written.copy([UInt8](repeating: 0x77, count: 200).span, to: 0)
    #expect(n == 100 && m == 200)
    let found = memory.bytes(1300, at: GuestAddress(0))
    #expect(Array(found[0..<100]) == one)
    #expect(
      found[1000..<1200].allSatisfy { $0 == 0x77 } && found[100..<1000].allSatisfy { $0 == 0 } && found[1200] == 0)
    cache.endRound()
  }
}
