import Foundation
import HostIO
import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("virtio-blk: hosts that fail, or cannot do everything") struct BlockHostTests {
  @Test("A full file system is IOERR and one line, and the next request is served", arguments: EngineKind.buffered)
  func full(engine: EngineKind) throws {
    guard let place = Mount("tmpfs", options: "size=256k") else {
      try Test.cancel("SKIPPED: this process may not mount a tmpfs, ENOSPC is not tested")
    }
    let file = try ScratchFile(size: 1 << 20, in: place.directory)
    let lines = LogLines()
    let rig = try engine.rig(file) { $0.report = { lines.add($0) } }
    #expect(try rig.writeDisk(0, pattern(65536)).status == 0)
    var failures = 0
    for i in 1..<10 as Range<UInt64> where try rig.writeDisk(128 * i, pattern(65536, seed: i)).status == 1 {
      failures += 1
    }
    #expect(failures >= 6)
    #expect(lines.all.count >= 1 && lines.all.count < failures)
    #expect(lines.all[0].contains("ENOSPC"))
    #expect(try rig.readDisk(0, 65536).data == pattern(65536))
    #expect(try rig.command(11, Wire.range(0, 128)).status == 0)
    #expect(try rig.writeDisk(0, pattern(32768, seed: 77)).status == 0, "what a discard gave back can be used")
    #expect(try rig.readDisk(0, 32768).data == pattern(32768, seed: 77))
  }

  @Test("A disk that fails is IOERR and one line, and what is still there is served", arguments: EngineKind.all)
  func failing(engine: EngineKind) throws {
    let backing = try ScratchFile(pattern(1 << 20))
    guard let loop = LoopDevice(backing.path, sectorSize: 512) else {
      try Test.cancel("SKIPPED: this process may not attach a loop device, EIO is not tested")
    }
    let lines = LogLines()
    let rig = try DeviceRig(engine.device(ScratchFile(at: loop.path)) { $0.report = { lines.add($0) } })
    #expect(try rig.readDisk(1024, 4096).data == Array(pattern(1 << 20)[524288..<528384]))
    // What is behind the device is cut off, and the device stays as long: every access there is EIO.
    try backing.truncate(262144)
    #expect(try rig.readDisk(1536, 8192).status == 1)
    #expect(lines.all.count == 1 && lines.all[0].contains("EIO"), "\(lines.all)")
    #expect(try rig.readDisk(2040, 4096).status == 1)
    #expect(try rig.readDisk(8, 4096).data == Array(pattern(1 << 20)[4096..<8192]))
    #expect(try rig.writeDisk(8, pattern(4096, seed: 3)).status == 0)
    #expect(try rig.readDisk(8, 4096).data == pattern(4096, seed: 3))
    #expect(try rig.command(4).status == 0)
  }

  @Test("A device of 4096-byte blocks takes requests in sectors, of any alignment", arguments: EngineKind.all)
  func largeBlocks(engine: EngineKind) throws {
    let backing = try ScratchFile(pattern(1 << 18))
    guard let loop = LoopDevice(backing.path, sectorSize: 4096) else {
      try Test.cancel("SKIPPED: this process may not attach a loop device, block devices are not tested")
    }
    let image = ScratchFile(at: loop.path)
    // As large as the device's own, and smaller where that is asked for: then parts of blocks go through memory in
    // between.
    for asked in [nil, 512] {
      let device = try engine.device(image) { $0.logicalBlockSize = asked }
      #expect(blockSize(of: device) == asked ?? 4096)
      try transferInSectors(device, backing)
    }
  }

  /// What the driver reads as `blk_size`.
  private func blockSize(of device: BlockDevice) -> Int {
    device.configuration(4, at: 20).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
  }

  private func transferInSectors(_ device: BlockDevice, _ backing: ScratchFile) throws {
    #expect(
      device.features.isSuperset(of: [.blockDiscard, .blockWriteZeroes]) && !device.features.contains(.blockSecureErase)
    )
    let rig = try DeviceRig(device)
    var expected = try rig.readDisk(0, 1 << 18).data
    for (sector, count, skew) in [
      (0, 4096, 0), (1, 512, 0), (7, 1024, 3), (15, 8192, 0), (100, 65536, 1), (511, 512, 9),
    ] as [(UInt64, Int, UInt64)] {
      let data = pattern(count, seed: sector + 2)
      let written = try rig.perform(readable: [Wire.header(1, sector), data], writable: [1], skew: skew)
      #expect(written.bytes == [0])
      expected.replaceSubrange(Int(sector) * 512..<Int(sector) * 512 + count, with: data)
    }
    // Not in whole blocks: the parts are written, and a discard leaves them.
    #expect(try rig.command(13, Wire.range(3, 2) + Wire.range(20, 30, flags: 1)) == (0, 1))
    for (first, count) in [(3, 2), (20, 30)] {
      expected.replaceSubrange(first * 512..<(first + count) * 512, with: repeatElement(0, count: count * 512))
    }
    #expect(try rig.command(11, Wire.range(201, 6)) == (0, 1))
    #expect(try rig.readDisk(0, 1 << 18).data == expected)
    #expect(try rig.command(11, Wire.range(256, 128)) == (0, 1))
    #expect(try rig.command(14, Wire.range(0, 8)) == (2, 1))
    #expect(try rig.command(4) == (0, 1))
    #expect(Array(backing.bytes[..<131072]) == Array(expected[..<131072]))
  }

  @Test(
    "On a file system without holes zeroes are written, and discards are not offered", arguments: EngineKind.buffered)
  func withoutHoles(engine: EngineKind) throws {
    guard let place = Mount("ramfs") else {
      try Test.cancel("SKIPPED: this process may not mount a ramfs, a file system without holes is not tested")
    }
    let file = try ScratchFile(pattern(65536), in: place.directory)
    let device = try engine.device(file)
    #expect(!device.features.contains(.blockDiscard) && device.features.contains(.blockWriteZeroes))
    let rig = try DeviceRig(device)
    #expect(try rig.command(11, Wire.range(0, 8)) == (2, 1))
    #expect(try rig.command(13, Wire.range(1, 7) + Wire.range(100, 20, flags: 1)) == (0, 1))
    var expected = pattern(65536)
    for (first, count) in [(1, 7), (100, 20)] {
      expected.replaceSubrange(first * 512..<(first + count) * 512, with: repeatElement(0, count: count * 512))
    }
    #expect(file.bytes == expected)
  }

  @Test("A file of the largest size there can be is offered discards, which give space back")
  func largest() throws {
    guard let place = Mount("tmpfs") else {
      try Test.cancel("SKIPPED: this process may not mount a tmpfs, the largest file is not tested")
    }
    let file = try ScratchFile(size: Int.max - 4095, in: place.directory)
    let device = try EngineKind(engine: .automatic).device(file)
    #expect(device.features.contains(.blockDiscard))
    let rig = try DeviceRig(device)
    #expect(try rig.writeDisk(0, pattern(65536)).status == 0)
    #expect(try file.allocated == 65536)
    #expect(try rig.command(11, Wire.range(0, 128)) == (0, 1))
    #expect(try file.allocated == 0)
  }

  @Test("A file without a hole is offered discards, and asking whether they work has changed nothing")
  func withoutHole() throws {
    let file = try ScratchFile(pattern(65536))
    #expect(try EngineKind(engine: .automatic).device(file).features.contains(.blockDiscard))
    #expect(file.bytes == pattern(65536))
  }

  @Test("Where the kernel gives no ring requests are done one after the other, and that is said; who insists hears why")
  func withoutRing() async {
    await #expect(processExitsWith: .success) {
      let file = try ScratchFile(pattern(65536))
      let lines = LogLines()
      let device = try EngineKind(engine: .automatic).device(file) { $0.report = { lines.add($0) } }
      let strict = try EngineKind(engine: .uring).device(ScratchFile(pattern(4096)))
      try OpenFileLimit.set(64)
      var others: [EventFD] = []
      while let one = try? EventFD() { others.append(one) }
      let handler = try device.makeHandler(for: 0..<1, features: device.features)
      guard handler.watched.isEmpty, lines.all.count == 1, lines.all[0].contains("one after the other"),
        lines.all[0].contains("EMFILE")
      else { exit(1) }
      do throws(DeviceError) {
        _ = try strict.makeHandler(for: 0..<1, features: strict.features)
        exit(2)
      } catch {
        guard error.description.contains("EMFILE") else { exit(3) }
      }
      others.removeAll()
      guard try DeviceRig(device).readDisk(8, 4096).data == Array(pattern(65536)[4096..<8192]) else { exit(4) }
      exit(0)
    }
  }
}

/// Runs a tool to its end; nil if it cannot be run or fails.
private func output(_ tool: String, _ arguments: String...) -> String? {
  let process = Process()
  process.executableURL = URL(filePath: "/usr/bin/env")
  // Where tools for administrators are; a user's PATH may lack it.
  process.environment = ["PATH": "/usr/sbin:/usr/bin:/sbin:/bin"]
  process.arguments = [tool] + arguments
  process.standardError = FileHandle.nullDevice
  let pipe = Pipe()
  process.standardOutput = pipe
  guard (try? process.run()) != nil else { return nil }
  let data = (try? pipe.fileHandleForReading.readToEnd()) ?? nil
  process.waitUntilExit()
  return process.terminationStatus == 0
    ? String(decoding: data ?? Data(), as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines) : nil
}

/// A file system of its own, as long as the object lives.
private final class Mount {
  let directory: String

  init?(_ kind: String, options: String = "defaults") {
    directory = "\(FileManager.default.temporaryDirectory.path)/sluice-mount-\(UUID().uuidString)"
    guard (try? FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)) != nil else {
      return nil
    }
    guard output("mount", "-t", kind, "-o", options, kind, directory) != nil else {
      try? FileManager.default.removeItem(atPath: directory)
      return nil
    }
  }

  deinit {
    // Lazily: a descriptor that closes a moment later must not leave it mounted for ever.
    _ = output("umount", "--lazy", directory)
    try? FileManager.default.removeItem(atPath: directory)
  }
}

/// A file as a block device, as long as the object lives.
private final class LoopDevice {
  let path: String

  init?(_ file: String, sectorSize: Int) {
    guard let path = output("losetup", "--find", "--show", "--sector-size", "\(sectorSize)", file),
      path.hasPrefix("/dev/")
    else { return nil }
    self.path = path
  }

  deinit { _ = output("losetup", "--detach", path) }
}
