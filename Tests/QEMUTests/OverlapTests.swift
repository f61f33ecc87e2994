import QTestKit
import Testing

@Suite("QEMU without a guest: mappings that change while requests run", .needsQEMU) struct OverlapTests {
  // QEMU's own device goes on writing to what it had translated: no referee here.
  @Test(
    "Once an invalidation is acknowledged no request under way writes to the page any more (R110)",
    arguments: DiskBackend.translating.filter { $0 != .qemu }, RingFormat.allCases)
  func unmapUnderWay(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 64)
    let memory = fixture.memory
    let qemu = fixture.qemu
    let pages = 16
    let table = try #require(memory.table)
    let buffers = try (0..<8).map { _ in try memory.allocate(pages * 4096) }
    var served = 0
    for round in 0..<40 {
      var ids: [UInt16] = []
      for (index, buffer) in buffers.enumerated() {
        ids.append(
          try fixture.driver.add(
            DiskDriver.Request.read, sector: (round * 8 + index) * 16 % 1900,
            [Piece(buffer, pages * 4096, writable: true)]))
      }
      try fixture.driver.notifyAlways()
      // The pages are taken back at once, used or not.
      let taken = try (0..<pages).map { try memory.frame(of: buffers[round % 8] + UInt64($0) * 4096) }
      try memory.unmap(buffers[round % 8], pages: pages)
      if round % 3 == 0 {
        try fixture.vtd.invalidate(.domain(table.domain))
        try fixture.invalidateDevice(0, order: 52)
      } else {
        for page in 0..<pages { try fixture.invalidate(buffers[round % 8] + UInt64(page) * 4096) }
      }
      // From here on they belong to another owner.
      for frame in taken { try qemu.fill(frame, count: 4096, with: 0x99) }
      for id in ids where try fixture.driver.wait(id).status == 0 { served += 1 }
      for frame in taken { try qemu.expectFilled(frame, with: 0x99, "round \(round)") }
      try memory.map(buffers[round % 8], to: taken)
    }
    #expect(served >= 40 * 7, "requests whose pages stayed mapped were served")
    _ = try fixture.vtd.takeFaults()
    try fixture.expectRead(sector: 5, into: [Piece(buffers[0], pages * 4096, writable: true)])
  }

  /// Numbers that are the same in every run.
  private struct Dice {
    var state: UInt64
    mutating func roll(_ count: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int((state >> 33) % UInt64(count))
    }
  }

  // QEMU's own device needs a reset after some of these refusals, and fills pages of others.
  @Test(
    "A random walk over map, unmap, remap, read and write agrees with a model, page by page (R046, R061, R110, R111)",
    arguments: DiskBackend.translating.filter { $0 != .qemu }, RingFormat.allCases)
  func randomWalk(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 32)
    let memory = fixture.memory
    let qemu = fixture.qemu
    let table = try #require(memory.table)
    let window = 12
    let base = memory.reserve(window)
    var dice = Dice(state: format == .split ? 41 : 42)
    let frames = try qemu.frames.takeScattered(24)
    // The model: what is where, what every frame and the disk hold.
    var mapped = [Int?](repeating: nil, count: window)
    var contents = (0..<frames.count).map { DiskImage.pattern($0 * 8, count: 4096, seed: 1000) }
    for (index, frame) in frames.enumerated() { try qemu.write(contents[index], at: frame) }
    var disk = DiskImage.pattern(0, count: 2048 * 512)
    func forget(_ page: Int) throws {
      switch dice.roll(3) {
      case 0: try fixture.invalidate(base + UInt64(page) * 4096)
      case 1:
        try fixture.vtd.invalidate(.domain(table.domain))
        try fixture.invalidateDevice(0, order: 52)
      default:
        try fixture.vtd.invalidate(.global)
        try fixture.invalidateDevice((base + UInt64(page) * 4096) & ~0xffff, order: 4)
      }
    }
    for step in 0..<160 {
      let page = dice.roll(window)
      switch dice.roll(6) {
      case 0, 1:
        let unused = frames.indices.filter { !mapped.contains($0) }
        let choice = unused[dice.roll(unused.count)]
        let wasMapped = mapped[page] != nil
        try memory.map(base + UInt64(page) * 4096, to: [frames[choice]])
        mapped[page] = choice
        if wasMapped { try forget(page) }
      case 2:
        guard mapped[page] != nil else { continue }
        try memory.unmap(base + UInt64(page) * 4096)
        mapped[page] = nil
        try forget(page)
      default:
        let isRead = dice.roll(2) == 0
        let offset = dice.roll(8) * 512
        let count = min((1 + dice.roll(3 * 8)) * 512, window * 4096 - page * 4096 - offset)
        let sector = dice.roll(1900)
        let touched = Array(page...page + (offset + count - 1) / 4096)
        let start = base + UInt64(page) * 4096 + UInt64(offset)
        let completion = try fixture.driver.run(
          isRead ? DiskDriver.Request.read : DiskDriver.Request.write, sector: sector,
          [Piece(start, count, writable: isRead)])
        guard touched.allSatisfy({ mapped[$0] != nil }) else {
          // Nothing of a refused request is done, in memory or on the disk (R087).
          #expect(completion.status == 1, "step \(step)")
          continue
        }
        try #require(completion.status == 0, "step \(step)")
        for byte in 0..<count / 512 {
          let at = offset + byte * 512
          let frame = try #require(mapped[page + at / 4096])
          let range = at % 4096..<at % 4096 + 512
          let place = (sector + byte) * 512..<(sector + byte + 1) * 512
          if isRead {
            contents[frame].replaceSubrange(range, with: disk[place])
          } else {
            disk.replaceSubrange(place, with: contents[frame][range])
          }
        }
      }
    }
    for (index, frame) in frames.enumerated() {
      try expectSame(qemu.read(frame, count: 4096), contents[index], "frame \(index)")
    }
    try expectSame(fixture.disk.image.read(0, count: 2048 * 512), disk, "the disk")
  }
}
