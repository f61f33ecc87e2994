import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("virtio-blk: what requests do") struct BlockRequestTests {
  @Test("What is written is read back, and is in the file", arguments: EngineKind.all, RingKind.all)
  func roundTrip(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(size: 1 << 20, kind: kind)
    let data = pattern(8192)
    #expect(try rig.writeDisk(16, data) == (0, 1))
    #expect(try rig.readDisk(16, 8192) == (0, 8193, data))
    #expect(Array(file.bytes[8192..<16384]) == data)
    #expect(file.bytes.count == 1 << 20)
  }

  @Test("The first and the last sector can be written and read", arguments: EngineKind.all)
  func edges(engine: EngineKind) throws {
    let (file, rig) = try engine.disk(size: 1 << 16)
    for sector in [0, 127] as [UInt64] {
      let data = pattern(512, seed: sector + 5)
      #expect(try rig.writeDisk(sector, data).status == 0)
      #expect(try rig.readDisk(sector, 512).data == data)
    }
    #expect(file.bytes.count == 1 << 16)
  }

  @Test("Headers, data and status may be cut anywhere, and share descriptors", arguments: EngineKind.all, RingKind.all)
  func layouts(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(size: 1 << 20, kind: kind)
    let data = pattern(4096, seed: 3)
    let message = Wire.header(1, 8) + data
    for cuts in [
      [], [1], [8], [15, 17], [16], [16, 528], [4, 16, 17, 4111], Array(stride(from: 3, to: 4112, by: 411)),
    ] {
      #expect(try rig.writeDisk(8, [UInt8](repeating: 0, count: 4096)).status == 0)
      let edges = [0] + cuts + [message.count]
      let pieces = zip(edges, edges.dropFirst()).map { Array(message[$0..<$1]) }
      let result = try rig.perform(readable: pieces, writable: [1], skew: 7)
      #expect(result == (1, [0]))
      #expect(Array(file.bytes[4096..<8192]) == data, "cut at \(cuts)")
    }
    for writable in [
      [4097], [4096, 1], [1, 4096], [1, 4095, 1], [512, 512, 3073], Array(repeating: 241, count: 17),
    ] {
      let result = try rig.perform(
        readable: [Array(Wire.header(0, 8)[..<5]), Array(Wire.header(0, 8)[5...])], writable: writable, skew: 9)
      #expect(result == (4097, data + [0]), "pieces of \(writable)")
    }
  }

  @Test(
    "The ID is 20 bytes padded with NUL; a short buffer gets its start, a long one no more",
    arguments: EngineKind.buffered)
  func getID(engine: EngineKind) throws {
    let file = try ScratchFile(size: 4096)
    let id = Array("sluice-0001".utf8)
    let rig = try engine.rig(file) { $0.serial = "sluice-0001" }
    let whole = try rig.perform(readable: [Wire.header(8)], writable: [20, 1])
    #expect(whole == (21, id + [UInt8](repeating: 0, count: 9) + [0]))
    let short = try rig.perform(readable: [Wire.header(8)], writable: [4, 1])
    #expect(short == (5, id.prefix(4) + [0]))
    let long = try rig.perform(readable: [Wire.header(8)], writable: [30, 1])
    #expect(long == (20, id + [UInt8](repeating: 0, count: 9) + [UInt8](repeating: 0xEE, count: 10) + [0]))
    let nothing = try rig.perform(readable: [Wire.header(8)], writable: [1])
    #expect(nothing == (1, [0]))
  }

  @Test("An ID of 20 characters has no NUL")
  func longID() throws {
    let (_, rig) = try EngineKind(engine: .synchronous).disk(size: 4096) { $0.serial = "abcdefghijklmnopqrst" }
    let whole = try rig.perform(readable: [Wire.header(8)], writable: [20, 1])
    #expect(whole.bytes == Array("abcdefghijklmnopqrst".utf8) + [0])
  }

  @Test("A flush succeeds, with or without writes before it", arguments: EngineKind.all)
  func flush(engine: EngineKind) throws {
    let (_, rig) = try engine.disk(size: 65536)
    #expect(try rig.command(4) == (0, 1))
    #expect(try rig.writeDisk(0, pattern(4096)).status == 0)
    #expect(try rig.command(4) == (0, 1))
  }

  @Test(
    "What the device does not do is UNSUPP: lifetime, SCSI, zones, anything unknown", arguments: EngineKind.buffered)
  func unsupported(engine: EngineKind) throws {
    let (file, rig) = try engine.disk()
    for type in [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 27, 0x8000_0000, 0xffff_ffff] as [UInt32] {
      let result = try rig.perform(readable: [Wire.header(type)], writable: [1])
      #expect(result == (1, [2]), "type \(type)")
    }
    let lifetime = try rig.perform(readable: [Wire.header(10)], writable: [6, 1])
    #expect(lifetime == (0, [UInt8](repeating: 0xEE, count: 6) + [2]))
    #expect(file.bytes == pattern(65536))
  }

  @Test("A read-only disk refuses every change, and says so in its features", arguments: EngineKind.all)
  func readOnly(engine: EngineKind) throws {
    let file = try ScratchFile(pattern(65536))
    let device = try engine.device(file) { $0.readOnly = true }
    #expect(device.features.contains(.blockReadOnly))
    #expect(device.features.isDisjoint(with: [.blockDiscard, .blockWriteZeroes, .blockSecureErase]))
    let rig = try DeviceRig(device)
    #expect(try rig.writeDisk(0, pattern(512, seed: 9)) == (1, 1))
    for type in [11, 13, 14] as [UInt32] { #expect(try rig.command(type, Wire.range(0, 8)) == (1, 1), "type \(type)") }
    #expect(try rig.readDisk(0, 4096).data == pattern(4096))
    #expect(try rig.command(4).status == 0)
    #expect(file.bytes == pattern(65536))
  }

  @Test("Two queues serve one disk", arguments: EngineKind.all)
  func queues(engine: EngineKind) throws {
    let file = try ScratchFile(size: 1 << 20)
    let device = try engine.device(file) { $0.queueCount = 2 }
    #expect(device.features.contains(.blockMultiqueue))
    #expect(device.queueGroups == [0..<1, 1..<2])
    let first = try DeviceRig(device)
    let second = try DeviceRig(device, queue: 1)
    #expect(try first.writeDisk(8, pattern(4096)).status == 0)
    #expect(try second.readDisk(8, 4096).data == pattern(4096))
    #expect(try second.writeDisk(16, pattern(4096, seed: 2)).status == 0)
    #expect(try first.readDisk(16, 4096).data == pattern(4096, seed: 2))
  }

  @Test(
    "Hundreds of requests at once all end, with the right bytes", arguments: EngineKind.all,
    [RingKind(), RingKind(packed: true)])
  func many(engine: EngineKind, kind: RingKind) throws {
    let file = try ScratchFile(size: 4 << 20)
    // Fewer slots than requests: a driver may have more under way than the device was told to expect.
    let device = try engine.device(file) { $0.queueSize = 16 }
    let rig = try DeviceRig(device, kind: kind, queueSize: 1024)
    var writes: [Int] = []
    for i in 0..<300 {
      writes.append(
        rig.submit(readable: [Wire.header(1, UInt64(8 * i)), pattern(4096, seed: UInt64(i + 1))], writable: [1]))
    }
    try rig.run()
    for n in writes {
      let result = try #require(rig.take(n))
      #expect(result == (1, [0]))
    }
    rig.forget()
    var reads: [Int] = []
    for i in 0..<300 { reads.append(rig.submit(readable: [Wire.header(0, UInt64(8 * i))], writable: [4096, 1])) }
    try rig.run()
    for (i, n) in reads.enumerated() {
      let result = try #require(rig.take(n))
      #expect(result == (4097, pattern(4096, seed: UInt64(i + 1)) + [0]), "request \(i)")
    }
    #expect(rig.inFlight == 0)
  }

  @Test("A request of more pieces than one host call takes is split, and whole", arguments: EngineKind.all)
  func pieces(engine: EngineKind) throws {
    let file = try ScratchFile(size: 2 << 20)
    let rig = try DeviceRig(
      engine.device(file) { $0.queueSize = 4096 }, kind: RingKind(indirect: true), queueSize: 4096)
    let data = pattern(2500 * 512)
    let parts = (0..<2500).map { Array(data[512 * $0..<512 * ($0 + 1)]) }
    let written = try rig.perform(readable: [Wire.header(1, 7)] + parts, writable: [1])
    #expect(written == (1, [0]))
    #expect(Array(file.bytes[3584..<3584 + data.count]) == data)
    let back = try rig.perform(readable: [Wire.header(0, 7)], writable: Array(repeating: 512, count: 2500) + [1])
    #expect(back.used == UInt32(data.count + 1))
    #expect(back.bytes == data + [0])
  }

  @Test("Stopping a queue ends what is under way, and nothing is lost", arguments: EngineKind.all)
  func stop(engine: EngineKind) throws {
    let (file, rig) = try engine.disk(size: 1 << 20)
    let requests = (0..<60).map {
      rig.submit(readable: [Wire.header(1, UInt64(8 * $0)), pattern(4096, seed: UInt64($0 + 1))], writable: [1])
    }
    try rig.kick()
    try rig.finish()
    #expect(rig.inFlight == 0)
    for n in requests {
      let result = try #require(rig.take(n))
      #expect(result.bytes == [0])
    }
    let bytes = file.bytes
    for i in 0..<60 { #expect(Array(bytes[4096 * i..<4096 * (i + 1)]) == pattern(4096, seed: UInt64(i + 1))) }
  }

  @Test(
    "With direct access, buffers and lengths that are not aligned work all the same", arguments: DiskEngine.allCases)
  func misaligned(engine: DiskEngine) throws {
    let (file, rig) = try EngineKind(engine: engine, direct: true).disk()
    for skew in [0, 1, 8, 511, 512] as [UInt64] {
      let data = pattern(1536, seed: skew + 2)
      let result = try rig.perform(readable: [Wire.header(1, 3), data], writable: [1], skew: skew)
      #expect(result.bytes == [0])
      let back = try rig.perform(readable: [Wire.header(0, 3)], writable: [1536, 1], skew: skew)
      #expect(back == (1537, data + [0]))
    }
    // Only the six sectors in the middle changed.
    #expect(file.bytes[..<1536] == pattern(65536)[..<1536])
    #expect(file.bytes[3072...] == pattern(65536)[3072...])
  }
}
