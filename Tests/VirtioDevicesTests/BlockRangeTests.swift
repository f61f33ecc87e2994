import Storage
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioBlock

@Suite("virtio-blk: discard, write zeroes, secure erase") struct BlockRangeTests {
  static let discard: UInt32 = 11
  static let writeZeroes: UInt32 = 13
  static let secureErase: UInt32 = 14
  static let size = 1 << 18

  /// Where files can have holes: the default place, and a tmpfs, which cannot zero a range otherwise.
  static let places = ["/tmp", "/dev/shm"]

  @Test("Discarding several ranges gives their space back, and leaves the rest", arguments: EngineKind.all, places)
  func discards(engine: EngineKind, place: String) throws {
    let (file, rig) = try engine.disk(pattern(Self.size), in: place)
    let before = try file.allocated
    let ranges = Wire.range(0, 128) + Wire.range(130, 0) + Wire.range(256, 64) + Wire.range(504, 8)
    #expect(try rig.command(Self.discard, ranges) == (0, 1))
    #expect(try file.allocated <= before - (128 + 64 + 8) * 512)
    var expected = pattern(Self.size)
    for (first, count) in [(0, 128), (256, 64), (504, 8)] {
      expected.replaceSubrange(first * 512..<(first + count) * 512, with: repeatElement(0, count: count * 512))
    }
    #expect(file.bytes == expected)
    #expect(try rig.readDisk(120, 8192).data == Array(expected[61440..<69632]))
  }

  @Test("Zeroes are read after writing them; with unmap the space is free", arguments: EngineKind.all, places)
  func zeroes(engine: EngineKind, place: String) throws {
    let (file, rig) = try engine.disk(pattern(Self.size), in: place)
    let before = try file.allocated
    #expect(try rig.command(Self.writeZeroes, Wire.range(100, 100) + Wire.range(201, 3)) == (0, 1))
    #expect(try file.allocated >= before, "without unmap the range keeps its space")
    var expected = pattern(Self.size)
    expected.replaceSubrange(51200..<102400, with: repeatElement(0, count: 51200))
    expected.replaceSubrange(201 * 512..<204 * 512, with: repeatElement(0, count: 1536))
    #expect(file.bytes == expected)
    #expect(try rig.command(Self.writeZeroes, Wire.range(256, 128, flags: 1)) == (0, 1))
    #expect(try file.allocated <= before - 128 * 512)
    expected.replaceSubrange(256 * 512..<384 * 512, with: repeatElement(0, count: 128 * 512))
    #expect(file.bytes == expected)
  }

  @Test("In writethrough mode zeroes are written too", arguments: EngineKind.all)
  func writethroughZeroes(engine: EngineKind) throws {
    let (file, rig) = try engine.disk() { $0.writeback = false }
    #expect(try rig.command(Self.writeZeroes, Wire.range(0, 64)) == (0, 1))
    #expect(file.bytes[..<32768].allSatisfy { $0 == 0 })
  }

  @Test("A request with a bad range is refused whole", arguments: EngineKind.buffered)
  func refused(engine: EngineKind) throws {
    let (file, rig) = try engine.disk(pattern(Self.size))
    let good = Wire.range(0, 8)
    for type in [Self.discard, Self.writeZeroes] {
      #expect(try rig.command(type, good + Wire.range(512, 1)) == (1, 1), "past the end")
      #expect(try rig.command(type, good + Wire.range(511, 2)) == (1, 1), "across the end")
      #expect(try rig.command(type, good + Wire.range(UInt64.max, 1)) == (1, 1), "wraps")
      #expect(try rig.command(type, good + Wire.range(1 << 55, 1)) == (1, 1), "wraps when shifted")
      #expect(try rig.command(type, Wire.range(0, .max)) == (1, 1), "more sectors than announced")
      #expect(try rig.command(type, good + [0]) == (1, 1), "half a range")
      #expect(try rig.command(type) == (1, 1), "no range")
      #expect(try rig.command(type, (0..<33).flatMap { _ in good }) == (1, 1), "more ranges than announced")
      #expect(try rig.command(type, good + Wire.range(8, 8, flags: 2)) == (2, 1), "an unknown flag")
      #expect(
        try rig.command(type, Wire.range(512, 1) + Wire.range(8, 8, flags: 4)) == (2, 1),
        "an unknown flag, after a range past the end")
      #expect(
        try rig.command(type, good + Wire.range(8, 8, flags: 0x8000_0001)) == (2, 1), "an unknown flag beside unmap"
      )
    }
    #expect(
      try rig.command(Self.discard, good + Wire.range(8, 8, flags: 1)) == (2, 1), "unmap means nothing to a discard")
    #expect(file.bytes == pattern(Self.size))
    #expect(try rig.command(Self.discard, (0..<32).flatMap { _ in good }) == (0, 1), "as many ranges as announced")
  }

  @Test("Ranges may be cut anywhere", arguments: EngineKind.buffered, RingKind.all)
  func cut(engine: EngineKind, kind: RingKind) throws {
    let (file, rig) = try engine.disk(kind: kind)
    let message = Wire.header(Self.discard) + Wire.range(8, 8) + Wire.range(32, 8)
    let pieces = [0..<3, 3..<17, 17..<30, 30..<48].map { Array(message[$0]) }
    let result = try rig.perform(readable: pieces, writable: [1], skew: 3)
    #expect(result.bytes == [0])
    #expect(file.bytes[4096..<8192].allSatisfy { $0 == 0 })
    #expect(file.bytes[16384..<20480].allSatisfy { $0 == 0 })
    #expect(file.bytes[8192..<16384] == pattern(65536)[8192..<16384])
  }

  @Test("A request whose feature was not negotiated is UNSUPP", arguments: EngineKind.buffered)
  func notNegotiated(engine: EngineKind) throws {
    let file = try ScratchFile(pattern(65536))
    let device = try engine.device(file)
    let rig = try DeviceRig(device, features: device.features.subtracting([.blockDiscard, .blockWriteZeroes]))
    #expect(try rig.command(Self.discard, Wire.range(0, 8)) == (2, 1))
    #expect(try rig.command(Self.writeZeroes, Wire.range(0, 8)) == (2, 1))
    #expect(try rig.command(Self.secureErase, Wire.range(0, 8)) == (2, 1), "a file cannot")
    #expect(file.bytes == pattern(65536))
  }

  @Test(
    "A sparse file stays sparse under writes, and after a whole disk of zeroes with unmap", arguments: EngineKind.all)
  func sparse(engine: EngineKind) throws {
    let (file, rig) = try engine.disk(size: 1 << 30)
    #expect(try rig.writeDisk(1 << 20, pattern(4096)).status == 0)
    #expect(try rig.readDisk(0, 65536).data.allSatisfy { $0 == 0 })
    #expect(try file.allocated <= 65536)
    for part in 0..<16 as Range<UInt64> {
      #expect(try rig.command(Self.writeZeroes, Wire.range(part << 17, 1 << 17, flags: 1)) == (0, 1))
    }
    #expect(try file.allocated <= 16384)
    #expect(try rig.readDisk(1 << 20, 4096).data.allSatisfy { $0 == 0 })
  }

  @Test("Discards can be kept from the driver; then zeroes give no space back either", arguments: EngineKind.all)
  func switchedOff(engine: EngineKind) throws {
    let file = try ScratchFile(pattern(65536))
    let before = try file.allocated
    let device = try engine.device(file) { $0.discard = false }
    #expect(!device.features.contains(.blockDiscard))
    #expect(device.features.contains(.blockWriteZeroes))
    #expect(device.configuration(1, at: 56) == [0])
    let rig = try DeviceRig(device)
    #expect(try rig.command(Self.writeZeroes, Wire.range(0, 128, flags: 1)) == (0, 1))
    #expect(file.bytes == [UInt8](repeating: 0, count: 65536))
    #expect(try file.allocated >= before, "write_zeroes_may_unmap says that no request can")
  }
}
