import HostIO
import Synchronization
import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("virtio-blk: configuration") struct BlockConfigurationTests {
  /// 1 MiB.
  let file: ScratchFile
  init() throws { file = try ScratchFile(size: 1 << 20) }

  func options(_ file: ScratchFile) -> BlockOptions { EngineKind(engine: .synchronous).options(file) }
  func device(_ change: (inout BlockOptions) -> Void = { _ in }) throws -> BlockDevice {
    try EngineKind(engine: .synchronous).device(file, change)
  }

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
    (options.queueCount, options.maxSegmentSize, options.logicalBlockSize) = (3, 1 << 20, 1024)
    let device = try BlockDevice(options)
    #expect(device.id == .block)
    #expect(device.configurationSize == 96)
    let fields: [(at: Int, count: Int, value: UInt64)] = [
      (0, 8, 1 << 21), (8, 4, 1 << 20), (12, 4, 126), (16, 2, (1 << 21) / (16 * 63)), (18, 1, 16), (19, 1, 63),
      (20, 4, 1024), (25, 1, 0), (32, 1, 1), (33, 1, 0), (34, 2, 3), (36, 4, 1 << 22), (40, 4, 32), (48, 4, 1 << 17),
      (52, 4, 32), (56, 4, 1),
    ]
    for (at, count, value) in fields { #expect(field(device, at: at, count: count) == value, "at \(at)") }
    let physical = try BlockFile(path: file.path, options: .init(readOnly: true, locked: false)).geometry.physicalBlock
    #expect(1024 << configuration(device, at: 24, count: 1)[0] == max(1024, physical))
    #expect(field(device, at: 44, count: 4) * 512 % 1024 == 0)
    #expect(configuration(device, at: 60, count: 36).allSatisfy { $0 == 0 }, "no secure erase, no zones")
    #expect(device.maxQueueSizes == [1024, 1024, 1024])
  }

  @Test("A part is the same bytes as in the whole, and past the end is zero")
  func parts() throws {
    let device = try device()
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
    let plain = try device().features
    #expect(
      plain == [
        .ring, .blockSegMax, .blockGeometry, .blockBlockSize, .blockFlush, .blockTopology, .blockConfigWCE,
        .blockDiscard, .blockWriteZeroes,
      ])
    let others = try device { ($0.queueCount, $0.maxSegmentSize, $0.cacheIsConfigurable) = (2, 65536, false) }.features
    #expect(others == plain.union([.blockMultiqueue, .blockSizeMax]).subtracting(.blockConfigWCE))
    #expect(!plain.contains(.accessPlatform), "transports add that")
  }

  @Test(
    "Segments fit the queue, however small it is",
    arguments: [(2, 1), (3, 1), (64, 62), (128, 126), (1024, 126)] as [(UInt16, UInt64)])
  func segments(queueSize: UInt16, most: UInt64) throws {
    #expect(field(try device { $0.queueSize = queueSize }, at: 12, count: 4) == most)
  }

  @Test("The cache mode can be written, nothing else")
  func writeback() throws {
    let device = try device()
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
    let device = try device { ($0.cacheIsConfigurable, $0.writeback) = (false, false) }
    write(device, [1], at: 32)
    #expect(configuration(device, at: 32, count: 1) == [0])
  }

  @Test("A driver that configures the cache and cannot flush starts with writethrough (§5.2.5.2)")
  func noFlush() throws {
    let device = try device()
    _ = try device.makeHandler(for: 0..<1, features: device.features.subtracting(.blockFlush))
    #expect(configuration(device, at: 32, count: 1) == [0])
  }

  @Test("The cache mode survives a migration")
  func state() throws {
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
    let device = try device { $0.sizePollInterval = .milliseconds(20) }
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
    let writer = try device()
    #expect { try device() } throws: { error in
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
    #expect(try device().byteCount == 1 << 20)
    thread.join()
  }

  @Test("Options that cannot be are refused by name")
  func badOptions() throws {
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
      #expect { try device(change) } throws: { error in
        guard case .option(name, _)? = error as? DiskError else { return false }
        return true
      }
    }
    #expect(throws: DiskError.self) { try BlockDevice(BlockOptions(path: "/nowhere/at/all")) }
    #expect(throws: DiskError.self) { try BlockDevice(BlockOptions(path: "/tmp")) }
  }
}
