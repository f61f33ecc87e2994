import Foundation
import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

/// Whether writes are stable shows when the file is cut off: the kernel counts bytes that were never written to storage
/// (`cancelled_write_bytes`), for the whole process, so these run in processes of their own.
@Suite("virtio-blk: write cache") struct WriteCacheTests {
  static func cancelled() -> Int? {
    guard let text = try? String(contentsOfFile: "/proc/self/io", encoding: .utf8) else { return nil }
    return text.split(separator: "\n").first { $0.hasPrefix("cancelled_write_bytes") }?.split(separator: " ").last
      .flatMap { Int($0) }
  }

  /// Bytes that were volatile when 64 KiB of writes had completed, with this cache mode written by the driver.
  static func volatile(
    _ engine: DiskEngine, option: Bool = true, writeback: UInt8?, without: Features = [], flushing: Bool = false,
    before: (BlockDevice) throws -> Void = { _ in },
    reading: Bool = true, resumingAt state: QueueState = .initial, after: (BlockDevice) -> Void = { _ in }
  ) throws -> Int {
    let file = try ScratchFile(size: 1 << 20)
    let device = try EngineKind(engine: engine).device(file) { $0.writeback = option }
    try before(device)
    if let writeback { device.writeConfiguration(at: 32, from: [writeback].span) }
    let rig = try DeviceRig(
      device, features: device.features.subtracting(without), resumingAt: state, readingConfiguration: reading)
    after(device)
    for i in 0..<16 as Range<UInt64> where try rig.writeDisk(8 * i, pattern(4096)).status != 0 {
      throw RigError.nothingHappens
    }
    if flushing, try rig.command(4).status != 0 { throw RigError.nothingHappens }
    let before = cancelled() ?? 0
    try file.truncate(0)
    return (cancelled() ?? 0) - before
  }

  /// Whether the temporary directory is on storage, and this process is told about it.
  static var isObservable: Bool {
    guard cancelled() != nil else { return false }
    return (try? volatile(.synchronous, writeback: 1)) == 65536
  }

  static func check(_ engine: DiskEngine) throws -> [String] {
    var wrong: [String] = []
    func expect(_ text: String, _ isVolatile: Bool, _ bytes: Int) {
      if (bytes > 0) != isVolatile { wrong.append("\(text): \(bytes) bytes volatile") }
    }
    expect("writeback, as it starts", true, try volatile(engine, writeback: nil))
    expect("writeback, chosen", true, try volatile(engine, writeback: 1))
    expect("writethrough, chosen", false, try volatile(engine, writeback: 0))
    expect("writeback, flushed", false, try volatile(engine, writeback: 1, flushing: true))
    expect(
      "neither flush nor configuration negotiated", false,
      try volatile(engine, writeback: 1, without: [.blockFlush, .blockConfigWCE]))
    expect("configuration without flush", false, try volatile(engine, writeback: 1, without: [.blockFlush]))
    expect(
      "flush without configuration ignores the field", true,
      try volatile(engine, writeback: 0, without: [.blockConfigWCE]))
    expect("writethrough as the option says", false, try volatile(engine, option: false, writeback: nil))
    expect("writethrough as the option says, writeback chosen", true, try volatile(engine, option: false, writeback: 1))
    expect(
      "writethrough as the option says, without configuration", false,
      try volatile(engine, option: false, writeback: nil, without: [.blockConfigWCE]))
    return wrong
  }

  /// The mode where the driver may have been told another one by another device.
  static func checkSuccession(_ engine: DiskEngine) throws -> [String] {
    var wrong: [String] = []
    func expect(_ text: String, _ isVolatile: Bool, _ bytes: Int) {
      if (bytes > 0) != isVolatile { wrong.append("\(text): \(bytes) bytes volatile") }
    }
    func field(_ device: BlockDevice) -> UInt8 {
      device.configuration(1, at: 32)[0]
    }
    /// What a driver does that only asks for the capacity.
    func readCapacity(_ device: BlockDevice) {
      _ = device.configuration(32)
    }
    func use(_ device: BlockDevice, at state: QueueState = .initial, reading: Bool) throws {
      _ = try DeviceRig(device, resumingAt: state, readingConfiguration: reading).kick()
    }
    let resumed = QueueState(available: 256, used: 256)

    expect("never told", false, try volatile(engine, writeback: nil, reading: false))
    expect(
      "never told, and without configuration", true,
      try volatile(engine, writeback: nil, without: [.blockConfigWCE], reading: false))
    expect(
      "told of other fields only", false, try volatile(engine, writeback: nil, before: readCapacity, reading: false))
    expect(
      "told when it was running already", false,
      try volatile(
        engine, writeback: nil, reading: false, after: { if field($0) != 0 { wrong.append("told of writeback") } }))
    expect(
      "told nothing, chose writeback", true,
      try volatile(engine, writeback: nil, reading: false, after: { $0.writeConfiguration(at: 32, from: [1].span) }))
    expect("taken over from another process", false, try volatile(engine, writeback: nil, resumingAt: resumed))
    expect("taken over, writeback chosen here", true, try volatile(engine, writeback: 1, resumingAt: resumed))
    expect(
      "taken over, writeback in the state that came along", true,
      try volatile(engine, writeback: nil, before: { try $0.restoreState([1, 1]) }, resumingAt: resumed))
    expect(
      "stopped and resumed here", true,
      try volatile(engine, writeback: nil, before: { try use($0, reading: true) }, reading: false, resumingAt: resumed))
    expect(
      "the next driver of one that was not told", true,
      try volatile(engine, writeback: nil, before: { try use($0, reading: false) }))
    expect(
      "restarted after it was not told", false,
      try volatile(engine, writeback: nil, before: { try use($0, reading: false) }, reading: false))
    return wrong
  }

  /// Ends this process, with success if nothing is wrong, or if nothing of this can be seen here.
  static func end(_ check: (DiskEngine) throws -> [String], _ engines: [DiskEngine]) throws -> Never {
    guard isObservable else {
      print("SKIPPED: the temporary directory is not on storage that tells")
      exit(0)
    }
    let wrong = try engines.flatMap { engine in try check(engine).map { "\(engine): \($0)" } }
    for line in wrong { print(line) }
    exit(wrong.isEmpty ? 0 : 1)
  }

  @Test("A driver that another device may have told of writethrough gets it")
  func succession() async throws {
    await #expect(processExitsWith: .success) {
      try WriteCacheTests.end(WriteCacheTests.checkSuccession, DiskEngine.allCases)
    }
  }

  @Test("Completed writes are stable exactly when they must be", arguments: DiskEngine.allCases)
  func stable(engine: DiskEngine) async throws {
    await #expect(processExitsWith: .success) { [name = engine.rawValue as String] in
      try WriteCacheTests.end(WriteCacheTests.check, [#require(DiskEngine(rawValue: name))])
    }
  }

  @Test("A file size limit is an I/O error, not a signal")
  func fileSizeLimit() async throws {
    await #expect(processExitsWith: .success) {
      signal(SIGXFSZ, SIG_IGN)
      let files = try DiskEngine.allCases.map { ($0, try ScratchFile(size: 1 << 20)) }
      let limit = Process()
      limit.executableURL = URL(filePath: "/usr/bin/prlimit")
      limit.arguments = ["--fsize=65536", "--pid", "\(getpid())"]
      try limit.run()
      limit.waitUntilExit()
      guard limit.terminationStatus == 0 else { exit(2) }
      for (engine, file) in files {
        let rig = try EngineKind(engine: engine).rig(file)
        // Across the limit the host writes a part, says so, and fails with the rest.
        guard try rig.writeDisk(120, pattern(8192)).status == 1, try rig.readDisk(120, 4096).data == pattern(4096)
        else { exit(3) }
        guard try rig.writeDisk(0, pattern(4096)).status == 0, try rig.writeDisk(256, pattern(4096)).status == 1,
          try rig.readDisk(0, 4096).data == pattern(4096)
        else { exit(1) }
      }
    }
  }
}
