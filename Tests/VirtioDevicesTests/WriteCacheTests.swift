import Foundation
import Testing
import Virtio
import VirtioDevices

/// Whether writes are stable shows when the file is cut off: the kernel counts bytes that were never written to storage
/// (`cancelled_write_bytes`), for the whole process, so these run in processes of their own.
@Suite("virtio-blk: write cache") struct WriteCacheTests {
  static func cancelled() -> Int? {
    guard let text = try? String(contentsOfFile: "/proc/self/io", encoding: .utf8) else { return nil }
    return text.split(separator: "\n").first { $0.hasPrefix("cancelled_write_bytes") }?.split(separator: " ").last.flatMap { Int($0) }
  }

  /// Bytes that were volatile when 64 KiB of writes had completed, with this cache mode written by the driver.
  static func volatile(_ engine: BlockEngine, writeback: UInt8?, without: Features = [], flushing: Bool = false) throws -> Int {
    let file = try ScratchFile(size: 1 << 20)
    let device = try EngineKind(engine: engine).device(file)
    if let writeback { device.writeConfiguration(at: 32, from: [writeback].span) }
    let rig = try DeviceRig(device, features: device.features.subtracting(without))
    for i in 0..<16 as Range<UInt64> where try rig.writeDisk(8 * i, pattern(4096)).status != 0 { throw RigError.nothingHappens }
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

  static func check(_ engine: BlockEngine) throws -> [String] {
    var wrong: [String] = []
    func expect(_ text: String, _ isVolatile: Bool, _ bytes: Int) { if (bytes > 0) != isVolatile { wrong.append("\(text): \(bytes) bytes volatile") } }
    expect("writeback, as it starts", true, try volatile(engine, writeback: nil))
    expect("writeback, chosen", true, try volatile(engine, writeback: 1))
    expect("writethrough, chosen", false, try volatile(engine, writeback: 0))
    expect("writeback, flushed", false, try volatile(engine, writeback: 1, flushing: true))
    expect("neither flush nor configuration negotiated", false, try volatile(engine, writeback: 1, without: [.blockFlush, .blockConfigWCE]))
    expect("configuration without flush", false, try volatile(engine, writeback: 1, without: [.blockFlush]))
    expect("flush without configuration ignores the field", true, try volatile(engine, writeback: 0, without: [.blockConfigWCE]))
    return wrong
  }

  @Test("Completed writes are stable exactly when they must be: one after the other")
  func synchronous() async throws {
    await #expect(processExitsWith: .success) {
      guard WriteCacheTests.isObservable else { return print("SKIPPED: the temporary directory is not on storage that tells") }
      let wrong = try WriteCacheTests.check(.synchronous)
      for line in wrong { print(line) }
      exit(wrong.isEmpty ? 0 : 1)
    }
  }

  @Test("Completed writes are stable exactly when they must be: through the ring")
  func uring() async throws {
    await #expect(processExitsWith: .success) {
      guard WriteCacheTests.isObservable else { return print("SKIPPED: the temporary directory is not on storage that tells") }
      let wrong = try WriteCacheTests.check(.uring)
      for line in wrong { print(line) }
      exit(wrong.isEmpty ? 0 : 1)
    }
  }

  @Test("Completed writes are stable exactly when they must be: whichever engine is faster")
  func automatic() async throws {
    await #expect(processExitsWith: .success) {
      guard WriteCacheTests.isObservable else { return print("SKIPPED: the temporary directory is not on storage that tells") }
      let wrong = try WriteCacheTests.check(.automatic)
      for line in wrong { print(line) }
      exit(wrong.isEmpty ? 0 : 1)
    }
  }

  @Test("A file size limit is an I/O error, not a signal")
  func fileSizeLimit() async throws {
    await #expect(processExitsWith: .success) {
      signal(SIGXFSZ, SIG_IGN)
      let files = try BlockEngine.allCases.map { ($0, try ScratchFile(size: 1 << 20)) }
      let limit = Process()
      limit.executableURL = URL(filePath: "/usr/bin/prlimit")
      limit.arguments = ["--fsize=65536", "--pid", "\(getpid())"]
      try limit.run()
      limit.waitUntilExit()
      guard limit.terminationStatus == 0 else { exit(2) }
      for (engine, file) in files {
        let rig = try EngineKind(engine: engine).rig(file)
        guard try rig.writeDisk(0, pattern(4096)).status == 0, try rig.writeDisk(256, pattern(4096)).status == 1,
          try rig.readDisk(0, 4096).data == pattern(4096)
        else { exit(1) }
      }
    }
  }
}
