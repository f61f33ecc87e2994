import Foundation
import HostIO
import Synchronization
import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("virtio-blk: configuration") struct BlockConfigurationTests {
  func options(_ file: ScratchFile) -> BlockOptions { EngineKind(engine: .synchronous).options(file) }

  func configuration(_ device: BlockDevice, at offset: Int = 0, count: Int = 96) -> [UInt8] {
    device.configuration(count, at: offset)
  }

  func field(_ device: BlockDevice, at offset: Int, count: Int) -> UInt64 {
    configuration(device, at: offset, count: count).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  func write(_ device: BlockDevice, _ bytes: [UInt8], at offset: Int) {
    device.writeConfiguration(at: offset, from: bytes.span)
  }

  @Test("Every field is where §5.2.4 has it")
  func fields() throws {
    let file = try ScratchFile(size: 1 << 30)
    var options = options(file)
    options.queueCount = 3
    options.maxSegmentSize = 1 << 20
    options.logicalBlockSize = 1024
    let device = try BlockDevice(options)
    #expect(device.id == .block)
    #expect(device.configurationSize == 96)
    #expect(field(device, at: 0, count: 8) == 1 << 21)
    #expect(field(device, at: 8, count: 4) == 1 << 20)
    #expect(field(device, at: 12, count: 4) == 126)
    #expect(field(device, at: 16, count: 2) == (1 << 21) / (16 * 63))
    #expect(configuration(device, at: 18, count: 2) == [16, 63])
    #expect(field(device, at: 20, count: 4) == 1024)
    let physical = try BlockFile(path: file.path, options: .init(readOnly: true, locked: false)).geometry.physicalBlock
    #expect(1024 << configuration(device, at: 24, count: 1)[0] == max(1024, physical))
    #expect(configuration(device, at: 25, count: 1) == [0])
    #expect(configuration(device, at: 32, count: 2) == [1, 0])
    #expect(field(device, at: 34, count: 2) == 3)
    #expect(field(device, at: 36, count: 4) == 1 << 22)
    #expect(field(device, at: 40, count: 4) == 32)
    #expect(field(device, at: 44, count: 4) * 512 % 1024 == 0)
    #expect(field(device, at: 48, count: 4) == 1 << 17)
    #expect(field(device, at: 52, count: 4) == 32)
    #expect(configuration(device, at: 56, count: 4) == [1, 0, 0, 0])
    #expect(configuration(device, at: 60, count: 36).allSatisfy { $0 == 0 }, "no secure erase, no zones")
    #expect(device.maxQueueSizes == [1024, 1024, 1024])
  }

  @Test("A part is the same bytes as in the whole, and past the end is zero")
  func parts() throws {
    let file = try ScratchFile(size: 1 << 20)
    let device = try BlockDevice(options(file))
    let whole = configuration(device)
    for (offset, count) in [(0, 57), (0, 60), (5, 7), (90, 6)] {
      #expect(configuration(device, at: offset, count: count) == Array(whole[offset..<offset + count]))
    }
    #expect(configuration(device, at: 90, count: 20) == Array(whole[90...]) + [UInt8](repeating: 0, count: 14))
    #expect(configuration(device, at: .max, count: 4) == [0, 0, 0, 0])
    #expect(configuration(device, at: -4, count: 8) == [0, 0, 0, 0] + whole[..<4])
  }

  @Test("What is offered follows from the image and the options")
  func features() throws {
    let file = try ScratchFile(size: 1 << 20)
    var options = options(file)
    let plain = try { try BlockDevice(options).features }()
    #expect(
      plain == [
        .ring, .blockSegMax, .blockGeometry, .blockBlockSize, .blockFlush, .blockTopology, .blockConfigWCE,
        .blockDiscard, .blockWriteZeroes,
      ])
    options.queueCount = 2
    options.maxSegmentSize = 65536
    options.cacheIsConfigurable = false
    let others = try { try BlockDevice(options).features }()
    #expect(others == plain.union([.blockMultiqueue, .blockSizeMax]).subtracting(.blockConfigWCE))
    #expect(!plain.contains(.accessPlatform), "transports add that")
  }

  @Test(
    "Segments fit the queue, however small it is",
    arguments: [(2, 1), (3, 1), (64, 62), (128, 126), (1024, 126)] as [(UInt16, UInt64)])
  func segments(queueSize: UInt16, most: UInt64) throws {
    let file = try ScratchFile(size: 1 << 20)
    var options = options(file)
    options.queueSize = queueSize
    #expect(field(try BlockDevice(options), at: 12, count: 4) == most)
  }

  @Test("The cache mode can be written, nothing else")
  func writeback() throws {
    let file = try ScratchFile(size: 1 << 20)
    let device = try BlockDevice(options(file))
    let before = configuration(device)
    write(device, [UInt8](repeating: 0xFF, count: 32), at: 0)
    write(device, [UInt8](repeating: 0xFF, count: 63), at: 33)
    write(device, [1], at: .max)
    write(device, [1], at: -1)
    #expect(configuration(device) == before)
    write(device, [0], at: 32)
    #expect(configuration(device, at: 32, count: 1) == [0])
    write(device, [9, 9, 9, 9], at: 30)
    #expect(configuration(device, at: 32, count: 1) == [1])
    #expect(configuration(device, at: 33, count: 63) == Array(before[33...]))
  }

  @Test("The cache mode cannot be written where that was not offered")
  func fixedWriteback() throws {
    let file = try ScratchFile(size: 1 << 20)
    var options = options(file)
    options.cacheIsConfigurable = false
    options.writeback = false
    let device = try BlockDevice(options)
    write(device, [1], at: 32)
    #expect(configuration(device, at: 32, count: 1) == [0])
  }

  @Test("A driver that configures the cache and cannot flush starts with writethrough (§5.2.5.2)")
  func noFlush() throws {
    let file = try ScratchFile(size: 1 << 20)
    let device = try BlockDevice(options(file))
    _ = try device.makeHandler(for: 0..<1, features: device.features.subtracting(.blockFlush))
    #expect(configuration(device, at: 32, count: 1) == [0])
  }

  @Test("The cache mode survives a migration")
  func state() throws {
    let file = try ScratchFile(size: 1 << 20)
    var options = options(file)
    options.lock = .never
    for mode in [0, 1] as [UInt8] {
      let source = try BlockDevice(options)
      let target = try BlockDevice(options)
      write(source, [mode], at: 32)
      try target.restoreState(source.saveState())
      #expect(configuration(target, at: 32, count: 1) == [mode])
    }
    let target = try BlockDevice(options)
    for bad in [[], [2, 0], [1], [1, 2], [1, 0, 0]] as [[UInt8]] {
      #expect(throws: DeviceError.self) { try target.restoreState(bad) }
    }
  }

  @Test("A resized image changes the capacity and is announced within the poll interval")
  func resize() async throws {
    let file = try ScratchFile(size: 1 << 20)
    var options = options(file)
    options.sizePollInterval = .milliseconds(20)
    let device = try BlockDevice(options)
    let (stream, continuation) = AsyncStream<Void>.makeStream()
    device.observeConfiguration { continuation.yield() }
    try file.truncate(2 << 20)
    var changes = stream.makeAsyncIterator()
    await changes.next()
    #expect(device.byteCount == 2 << 20)
    #expect(field(device, at: 0, count: 8) == 4096)
    let rig = try DeviceRig(device)
    #expect(try rig.writeDisk(4088, pattern(4096)).status == 0)
    try file.truncate(1 << 19)
    await changes.next()
    #expect(device.byteCount == 1 << 19)
    #expect(try rig.readDisk(4088, 4096).status == 1)
  }

  @Test("The tail of an image that is no whole block is not part of the disk, and that is said")
  func tail() throws {
    let file = try ScratchFile(pattern(5000))
    let lines = LogLines()
    var options = options(file)
    options.report = { lines.add($0) }
    let device = try BlockDevice(options)
    #expect(device.byteCount == 4608)
    #expect(lines.all.count == 1 && lines.all[0].contains("392 bytes"))
    let rig = try DeviceRig(device)
    #expect(try rig.readDisk(8, 512).data == Array(pattern(5000)[4096..<4608]))
    #expect(try rig.readDisk(9, 512).status == 1)
  }

  @Test("A second writer is kept out, readers stay together")
  func locks() throws {
    let file = try ScratchFile(size: 1 << 20)
    let writer = try BlockDevice(options(file))
    #expect { try BlockDevice(options(file)) } throws: { error in
      guard case .image(let host)? = error as? DiskError else { return false }
      return host.errno == .resourceBusy && "\(host)".contains(file.path)
    }
    var reader = options(file)
    reader.readOnly = true
    #expect(throws: DiskError.self) { try BlockDevice(reader) }
    let rig = try DeviceRig(writer)
    #expect(try rig.readDisk(0, 512).status == 0)
    let other = try ScratchFile(size: 1 << 20)
    reader.path = other.path
    let first = try BlockDevice(reader)
    let second = try BlockDevice(reader)
    #expect(first.byteCount == second.byteCount)
  }

  @Test("A lock that becomes free in time is waited for")
  func lockPatience() throws {
    let file = try ScratchFile(size: 1 << 20)
    final class Holder: Sendable {
      let file: Mutex<BlockFile?>
      init(_ path: String) throws { file = Mutex(try BlockFile(path: path)) }
    }
    let holder = try Holder(file.path)
    // A thread of its own gives the lock up, so that a busy pool of test threads cannot hold it longer than we wait.
    let never = try EventFD()
    let thread = try WorkerThread(name: "holder") {
      _ = try? never.wait(timeout: .milliseconds(50))
      holder.file.withLock { $0 = nil }
    }
    #expect(try BlockDevice(options(file)).byteCount == 1 << 20)
    thread.join()
  }

  @Test("Options that cannot be are refused by name")
  func badOptions() throws {
    let file = try ScratchFile(size: 1 << 20)
    let changes: [(String, (inout BlockOptions) -> Void)] = [
      ("queueCount", { $0.queueCount = 0 }), ("queueCount", { $0.queueCount = 257 }),
      ("queueSize", { $0.queueSize = 1 }),
      ("queueSize", { $0.queueSize = 32769 }), ("serial", { $0.serial = "twenty-one characters" }),
      ("serial", { $0.serial = "nul\0" }),
      ("serial", { $0.serial = "ü" }), ("logicalBlockSize", { $0.logicalBlockSize = 0 }),
      ("logicalBlockSize", { $0.logicalBlockSize = 1000 }),
      ("logicalBlockSize", { $0.logicalBlockSize = 131072 }), ("maxSegments", { $0.maxSegments = 0 }),
      ("maxSegmentSize", { $0.maxSegmentSize = 512 }),
    ]
    for (name, change) in changes {
      var options = options(file)
      change(&options)
      #expect { try BlockDevice(options) } throws: { error in
        guard case .option(name, _)? = error as? DiskError else { return false }
        return true
      }
    }
    #expect(throws: DiskError.self) { try BlockDevice(BlockOptions(path: "/nowhere/at/all")) }
    #expect(throws: DiskError.self) { try BlockDevice(BlockOptions(path: "/tmp")) }
  }
}
