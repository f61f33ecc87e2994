import DMA
import Storage
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioBlock

@Suite("virtio-blk: bad input") struct BlockFailureTests {
  @Test("Addresses and lengths that do not fit the disk are IOERR, and touch nothing", arguments: EngineKind.all)
  func outside(engine: EngineKind) throws {
    let (file, rig) = try engine.disk()
    for (sector, count) in [
      (128, 512), (127, 1024), (0, 66048), (129, 512), (UInt64.max, 512), (1 << 55, 512), ((1 << 55) - 1, 512),
      (UInt64.max >> 9, 512),
      (0, 511), (0, 513), (0, 1),
    ] as [(UInt64, Int)] {
      let read = try rig.perform(readable: [Wire.header(0, sector)], writable: [count, 1])
      #expect(read.used == 0, "reading \(count) bytes at \(sector)")
      #expect(read.bytes == [UInt8](repeating: 0xEE, count: count) + [1])
      #expect(
        try rig.writeDisk(sector, [UInt8](repeating: 0x55, count: count)) == (1, 1),
        "writing \(count) bytes at \(sector)")
    }
    #expect(file.bytes == pattern(65536))
    // Nothing at all is a request, if a useless one.
    #expect(try rig.perform(readable: [Wire.header(0, 128)], writable: [1]).bytes == [0])
    #expect(try rig.perform(readable: [Wire.header(0, 129)], writable: [1]).bytes == [1])
    #expect(try rig.perform(readable: [Wire.header(1, 0)], writable: [1]).bytes == [0])
    #expect(try rig.readDisk(0, 512).data == pattern(512))
  }

  @Test("A chain without room for a header is IOERR", arguments: EngineKind.buffered, RingKind.all)
  func shortHeader(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(kind: kind)
    let cut = try rig.perform(readable: [Array(Wire.header(0)[..<15])], writable: [512, 1])
    #expect(cut.used == 0 && cut.bytes.last == 1)
    #expect(try rig.command(1, []).status == 0)
    #expect(try rig.perform(readable: [Array(Wire.header(1)[..<15])], writable: [1]) == (1, [1]))
    let none = try rig.perform(readable: [], writable: [513])
    #expect(none.used == 0 && none.bytes.last == 1)
    #expect(file.bytes == pattern(65536))
    #expect(try rig.readDisk(0, 512).data == pattern(512))
  }

  /// A request that cannot be told how it ended, behind one that can, and in front of another.
  private func needsReset(
    _ device: BlockDevice, _ kind: RingKind, _ file: ScratchFile, _ submit: (DeviceRig) -> Int
  ) throws {
    let rig = try DeviceRig(device, kind: kind)
    let before = rig.submit(readable: [Wire.header(1, 64), pattern(512, seed: 9)], writable: [1])
    let bad = submit(rig)
    let after = rig.submit(readable: [Wire.header(1, 65), pattern(512, seed: 10)], writable: [1])
    #expect { try rig.kick() } throws: { error in
      guard case .device(let reason)? = error as? QueueError else { return false }
      return reason.contains("status")
    }
    // What was taken earlier is done all the same, and holds no mapping until the driver thinks of a reset.
    try rig.settle()
    #expect(rig.take(bad) == nil && rig.take(after) == nil, "given back, it would pass for a success")
    var expected = pattern(65536)
    expected.replaceSubrange(64 * 512..<65 * 512, with: pattern(512, seed: 9))
    #expect(file.bytes == expected)
    _ = rig.take(before)
    #expect(rig.state?.available == 1, "who starts the queue without a reset comes upon the same chain")
    // The device needs a reset, and nothing else: the next driver is served.
    let next = try DeviceRig(device, kind: kind)
    #expect(try next.readDisk(64, 512).data == pattern(512, seed: 9))
  }

  @Test(
    "A chain without a device-writable byte for its status needs a reset (R089)", arguments: EngineKind.buffered,
    [RingKind(indirect: true), RingKind(packed: true, indirect: true)])
  func withoutStatus(engine: EngineKind, kind: RingKind) throws {
    for type in [0, 1, 4, 99] as [UInt32] {
      let file = try ScratchFile(pattern(65536))
      try needsReset(engine.device(file), kind, file) {
        $0.submit(readable: [Wire.header(type), pattern(512, seed: 4)], writable: [])
      }
    }
    let file = try ScratchFile(pattern(65536))
    try needsReset(engine.device(file), kind, file) { $0.submit(readable: [[1]], writable: []) }
  }

  @Test(
    "A chain whose status cannot be reached needs a reset: nothing else would tell the driver (R088, R089)",
    arguments: EngineKind.buffered, [RingKind(indirect: true), RingKind(packed: true, indirect: true)])
  func unreachableStatus(engine: EngineKind, kind: RingKind) throws {
    let hole = DMAAddress(0x7f00_0000_0000)
    for (type, isDataThere) in [(0, true), (0, false), (1, true), (1, false), (4, true)] as [(UInt32, Bool)] {
      let file = try ScratchFile(pattern(65536))
      try needsReset(engine.device(file), kind, file) { rig in
        let (header, data) = (rig.allocate(16), rig.allocate(512))
        rig.write(Wire.header(type), at: header)
        let middle = LiteralDescriptor(isDataThere ? DMAAddress(data) : hole, 512, writable: type == 0)
        return rig.submit([
          LiteralDescriptor(DMAAddress(header), 16), middle, LiteralDescriptor(hole, 1, writable: true),
        ])
      }
    }
  }

  @Test(
    "A chain whose memory cannot be reached is IOERR where its status can be, used length 0 (R087, R088, R090)",
    arguments: EngineKind.buffered, RingKind.all)
  func unreachable(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(kind: kind)
    let hole = DMAAddress(0x7f00_0000_0000)
    let header = rig.allocate(16)
    let status = rig.allocate(1)
    let data = rig.allocate(4096)
    func descriptor(_ address: UInt64, _ count: UInt32, writable: Bool = false) -> LiteralDescriptor {
      LiteralDescriptor(DMAAddress(address), count, writable: writable)
    }
    // (what the chain asks for, its descriptors)
    let cases: [(UInt32, [LiteralDescriptor])] = [
      (
        0,
        [descriptor(header, 16), LiteralDescriptor(hole, 4096, writable: true), descriptor(status, 1, writable: true)]
      ),
      (1, [descriptor(header, 16), LiteralDescriptor(hole, 4096), descriptor(status, 1, writable: true)]),
      (1, [LiteralDescriptor(hole, 16), descriptor(data, 4096), descriptor(status, 1, writable: true)]),
    ]
    for (type, chain) in cases {
      rig.write(Wire.header(type), at: header)
      rig.write([0xEE], at: status)
      rig.write([UInt8](repeating: 0x77, count: 4096), at: data)
      let n = rig.submit(chain)
      try rig.run()
      #expect(try #require(rig.take(n)).used == 0)
      #expect(rig.read(1, at: status) == [1])
      #expect(rig.read(4096, at: data) == [UInt8](repeating: 0x77, count: 4096), "no byte moved")
    }
    #expect(file.bytes == pattern(65536))
    #expect(try rig.readDisk(0, 512).data == pattern(512))
  }

  @Test(
    "Requests of random bytes and shapes all come back, and stay on the disk", arguments: EngineKind.buffered,
    [RingKind(), RingKind(packed: true, indirect: true)])
  func random(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(size: 65536, kind: kind)
    var random = SeededGenerator(42)
    for _ in 0..<40 {
      var requests: [(Int, Int)] = []
      for _ in 0..<20 {
        var message = Wire.header(
          UInt32(random.next() % 16), random.next() % 8 == 0 ? random.next() : random.next() % 130)
        message =
          Array(
            (message + pattern(Int(random.next() % 3) * 512 + Int(random.next() % 2) * 16, seed: 3))[..<(message.count)]
          ) + pattern(Int(random.next() % 1100))
        let cut = Int(random.next() % UInt64(message.count))
        let writable = (0...Int(random.next() % 3)).map { _ in Int(random.next() % 700) + 1 }
        let n = rig.submit(
          readable: cut == 0 ? [message] : [Array(message[..<cut]), Array(message[cut...])], writable: writable,
          skew: random.next() % 16)
        requests.append((n, writable.reduce(0, +)))
      }
      try rig.run()
      for (n, room) in requests { #expect(Int(try #require(rig.take(n)).used) <= room) }
      rig.forget()
    }
    #expect(file.bytes.count == 65536)
    #expect(try rig.writeDisk(0, pattern(512)).status == 0)
    #expect(try rig.readDisk(0, 512).data == pattern(512))
  }

  @Test("An image cut short is IOERR beyond its end, one line, and a smaller disk", arguments: EngineKind.all)
  func shrunk(engine: EngineKind) throws {
    let file = try ScratchFile(pattern(65536))
    let lines = LogLines()
    let device = try engine.device(file) { $0.report = { lines.add($0) } }
    let changes = LogLines()
    device.observeConfiguration { changes.add("changed") }
    let rig = try DeviceRig(device)
    try file.truncate(32768)
    let across = try rig.perform(readable: [Wire.header(0, 60)], writable: [4096, 1])
    #expect(across.bytes.last == 1)
    #expect(across.used <= 2048)
    for _ in 0..<10 { #expect(try rig.readDisk(100, 512).status == 1) }
    #expect(lines.all.count == 1, "\(lines.all)")
    #expect(changes.all.count == 1)
    #expect(device.byteCount == 32768)
    #expect(try rig.writeDisk(100, pattern(512)) == (1, 1))
    #expect(file.bytes.count == 32768, "a write beyond the end does not make the image longer")
    #expect(try rig.readDisk(0, 512).data == pattern(512))
    #expect(try rig.writeDisk(63, pattern(512, seed: 8)).status == 0)
  }
}
