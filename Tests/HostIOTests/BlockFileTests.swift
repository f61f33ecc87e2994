import DMA
import Foundation
import Glibc
import HostIO
import Testing
import VirtioTestKit

@Suite("Block files") struct BlockFileTests {
  private let directory: TemporaryFolder

  init() throws { directory = try TemporaryFolder() }

  @Test("Vectored reads and writes move every segment, in order")
  func roundTrip() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(65536)))
    #expect(file.kind == .regularFile && file.size == 65536 && file.geometry.logicalBlock == 512)
    let buffers = try Buffers([(0, 16), (4096, 4096), (20000, 511), (30000, 1)])
    let count = try file.read(into: buffers.list.readable, at: 1000)
    #expect(count == 16 + 4096 + 511 + 1)
    #expect(buffers.bytes == Array(pattern(65536)[1000..<1000 + count]))

    buffers.bytes = pattern(count, seed: 9)
    try file.write(from: buffers.list.readable, at: 5000, durable: true)
    try file.flush()
    var expected = pattern(65536)
    expected.replaceSubrange(5000..<5000 + count, with: pattern(count, seed: 9))
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
  }

  @Test("A part of the segments, and the rest of a short transfer, go to their place")
  func window() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(8192)))
    let buffers = try Buffers([(0, 16), (4096, 512), (8192, 512), (12288, 1)])
    buffers.bytes = [UInt8](repeating: 0xee, count: 1041)
    // Skips a whole segment of the window and a part of the next.
    let count = try file.read(into: buffers.list.readable, 1..<3, skipping: 600, at: 2000)
    #expect(count == 424)
    var expected = [UInt8](repeating: 0xee, count: 1041)
    expected.replaceSubrange(616..<1040, with: pattern(8192)[2000..<2424])
    #expect(buffers.bytes == expected)
    #expect(file.byteCount(buffers.list.readable, 1..<3) == 1024)
    try file.write(from: buffers.list.readable, 1..<3, skipping: 600, at: 0)
    #expect(try Data(contentsOf: URL(filePath: file.path)).prefix(424) == Data(pattern(8192)[2000..<2424]))
    expect(EINVAL) { try file.write(from: buffers.list.readable, 1..<3, skipping: 1025, at: 0) }
  }

  @Test("More segments than one call takes are moved in several")
  func manySegments() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(100_000)))
    let buffers = try Buffers((0..<3000).map { ($0 * 64, 32) })
    #expect(buffers.list.segmentCount == 3000)
    let count = try file.read(into: buffers.list.readable, at: 7)
    #expect(count == 96000)
    #expect(buffers.bytes == Array(pattern(100_000)[7..<96007]))
    buffers.bytes = pattern(96000, seed: 3)
    try file.write(from: buffers.list.readable, at: 0)
    #expect(try Data(contentsOf: URL(filePath: file.path)).prefix(96000) == Data(pattern(96000, seed: 3)))
  }

  @Test("Reading ends at the end of the file; writing past it changes nothing")
  func ends() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(1000)))
    let buffers = try Buffers([(0, 300), (4096, 300)])
    #expect(try file.read(into: buffers.list.readable, at: 600) == 400)
    #expect(try file.read(into: buffers.list.readable, at: 1000) == 0)
    #expect(try file.read(into: buffers.list.readable, at: 5000) == 0)
    for position in [401, 1001, UInt64(Int64.max), UInt64.max] {
      expect(EINVAL) { try file.write(from: buffers.list.readable, at: position) }
      expect(EINVAL) { try file.discard(at: position, count: 600) }
      expect(EINVAL) { try file.writeZeroes(at: position, count: 600, unmap: false) }
    }
    expect(EINVAL) { _ = try file.read(into: buffers.list.readable, at: .max) }
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(pattern(1000)))
  }

  @Test("A resize is noticed when asked for, and only then")
  func resize() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(1024)))
    #expect(try file.refreshSize() == false)
    let handle = try #require(FileHandle(forWritingAtPath: file.path))
    try handle.truncate(atOffset: 4096)
    #expect(file.size == 1024)
    #expect(try file.refreshSize())
    #expect(file.size == 4096)
  }

  @Test("A file cut short while open reads short, and stays readable")
  func cutShort() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(8192)))
    try #require(FileHandle(forWritingAtPath: file.path)).truncate(atOffset: 512)
    let buffers = try Buffers([(0, 1024)])
    #expect(try file.read(into: buffers.list.readable, at: 0) == 512)
    #expect(try file.read(into: buffers.list.readable, at: 4096) == 0)
  }

  @Test("What is no disk is refused by its kind, without waiting for it")
  func kinds() throws {
    expect(EISDIR) { _ = try BlockFile(path: directory.url.path) }
    expect(EISDIR) { _ = try BlockFile(path: directory.url.path, options: .init(readOnly: true)) }
    #expect(try run("/usr/bin/mkfifo", [directory.path("fifo")]).status == 0)
    expect(ENOTBLK) { _ = try BlockFile(path: directory.path("fifo"), options: .init(readOnly: true)) }
    expect(ENOTBLK) { _ = try BlockFile(path: "/dev/null") }
    expect(ENOENT) { _ = try BlockFile(path: directory.path("none")) }
    #expect(!FileManager.default.fileExists(atPath: directory.path("none")))
  }

  @Test("A read-only disk refuses every change")
  func readOnly() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(4096)), options: .init(readOnly: true))
    let buffers = try Buffers([(0, 512)])
    expect(EROFS) { try file.write(from: buffers.list.readable, at: 0) }
    expect(EROFS) { try file.discard(at: 0, count: 512) }
    expect(EROFS) { try file.writeZeroes(at: 0, count: 512, unmap: true) }
    expect(EROFS) { try file.secureErase(at: 0, count: 512) }
    #expect(!file.supportsDiscard && !file.supportsSecureErase)
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(pattern(4096)))
  }

  @Test("A full file system is ENOSPC, and what is there stays readable")
  func noSpace() throws {
    let mounted =
      (try? run("/usr/bin/mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", directory.url.path]))?.status == 0
    guard mounted else { try Test.cancel("SKIPPED: this process may not mount a tmpfs, ENOSPC is not tested") }
    defer { _ = try? run("/usr/bin/umount", [directory.url.path]) }
    let handle = try #require(FileHandle(forWritingAtPath: try directory.file("disk", pattern(4096))))
    try handle.truncate(atOffset: 1 << 20)
    try handle.close()
    let file = try BlockFile(path: directory.path("disk"))
    let buffers = try Buffers([(0, 131072)])
    expect(ENOSPC) { try file.write(from: buffers.list.readable, at: 8192) }
    expect(ENOSPC) { try file.writeZeroes(at: 8192, count: 131072, unmap: false) }
    #expect(try file.read(into: buffers.list.readable, at: 0) == 131072)
    #expect(Array(buffers.bytes[..<4096]) == pattern(4096))
  }
}

@Suite("Ranges of block files") struct BlockFileRangeTests {
  private let directory: TemporaryFolder

  init() throws { directory = try TemporaryFolder() }

  private func contents(_ file: BlockFile) throws -> [UInt8] {
    let all = try Buffers([(0, Int(file.size))])
    try #require(try file.read(into: all.list.readable, at: 0) == Int(file.size))
    return all.bytes
  }

  @Test("A file system without holes and ranges gets bytes of zero, and no discards")
  func noRanges() throws {
    let mounted = (try? run("/usr/bin/mount", ["-t", "ramfs", "ramfs", directory.url.path]))?.status == 0
    guard mounted else {
      try Test.cancel("SKIPPED: this process may not mount a ramfs, a file system without holes is not tested")
    }
    defer { _ = try? run("/usr/bin/umount", [directory.url.path]) }
    var expected = pattern(3 << 20)
    let file = try BlockFile(path: try directory.file("disk", expected))
    #expect(!file.supportsDiscard && file.isMemory)
    expect(EOPNOTSUPP) { try file.discard(at: 0, count: 4096) }
    for (position, count, unmap) in [
      (7, 2_000_003, false), (2_500_000, 4096, true), (3_000_000, 1, false), (3_100_000, 0, true),
    ] {
      try file.writeZeroes(at: UInt64(position), count: UInt64(count), unmap: unmap)
      expected.replaceSubrange(position..<position + count, with: repeatElement(0, count: count))
    }
    #expect(try contents(file) == expected)
  }

  /// The default temporary directory and, if there is one, a tmpfs, which has holes but cannot zero ranges.
  static let places = [FileManager.default.temporaryDirectory, URL(filePath: "/dev/shm")].filter {
    FileManager.default.isWritableFile(atPath: $0.path)
  }

  @Test("A discarded range gives its space back and reads as zeros", arguments: places)
  func discard(place: URL) throws {
    let directory = try TemporaryFolder(under: place)
    let file = try BlockFile(path: try directory.file("disk", pattern(1 << 20)))
    try #require(file.supportsDiscard)
    let before = try file.allocatedSize()
    try file.discard(at: 262144, count: 524288)
    #expect(try file.allocatedSize() <= before - 524288)
    try file.discard(at: 0, count: 0)
    var expected = pattern(1 << 20)
    expected.replaceSubrange(262144..<786432, with: [UInt8](repeating: 0, count: 524288))
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
    #expect(file.size == 1 << 20)
  }

  @Test("Zeroes are written with and without giving space back, at any offset", arguments: places)
  func zeroes(place: URL) throws {
    let directory = try TemporaryFolder(under: place)
    let file = try BlockFile(path: try directory.file("disk", pattern(4 << 20)))
    let before = try file.allocatedSize()
    try file.writeZeroes(at: 1000, count: 1_500_000, unmap: false)
    #expect(try file.allocatedSize() >= before)
    try file.writeZeroes(at: 2 << 20, count: 1 << 20, unmap: true)
    // The file system may have taken a few blocks more to note the ranges down.
    #expect(try file.allocatedSize() <= before - (1 << 20) + 65536)
    var expected = pattern(4 << 20)
    expected.replaceSubrange(1000..<1_501_000, with: [UInt8](repeating: 0, count: 1_500_000))
    expected.replaceSubrange(2 << 20..<3 << 20, with: [UInt8](repeating: 0, count: 1 << 20))
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
  }

  @Test("A sparse file stays sparse when only a little is written")
  func sparse() throws {
    try #require(FileHandle(forWritingAtPath: try directory.file("disk", []))).truncate(atOffset: 1 << 30)
    let file = try BlockFile(path: directory.path("disk"))
    let buffers = try Buffers([(0, 4096)])
    buffers.bytes = pattern(4096)
    try file.write(from: buffers.list.readable, at: 512 << 20)
    #expect(try file.allocatedSize() <= 65536)
    #expect(file.size == 1 << 30)
  }

  @Test("Secure erase of a regular file is refused, not pretended")
  func secureErase() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(4096)))
    #expect(!file.supportsSecureErase)
    expect(EOPNOTSUPP) { try file.secureErase(at: 0, count: 4096) }
  }

  @Test("A block device tells its shape and takes the same requests")
  func blockDevice() throws {
    let backing = try directory.file("backing", pattern(1 << 20))
    let attached = try? run("/usr/sbin/losetup", ["--find", "--show", "--sector-size", "4096", backing])
    guard let attached, attached.status == 0 else {
      try Test.cancel("SKIPPED: this process may not attach a loop device, block devices are not tested")
    }
    let device = attached.output.trimmingCharacters(in: .whitespacesAndNewlines)
    defer { _ = try? run("/usr/sbin/losetup", ["--detach", device]) }
    for direct in [false, true] {
      let file = try BlockFile(path: device, options: .init(direct: direct))
      #expect(file.kind == .blockDevice && file.size == 1 << 20)
      #expect(file.geometry.logicalBlock == 4096)
      #expect(file.geometry.physicalBlock >= 4096)
      #expect(file.supportsDiscard)
      #expect(!file.supportsSecureErase)
      #expect(file.isDirect == direct && (!direct || file.positionAlignment == 4096))
      let buffers = try Buffers([(0, 512), (4096, 3584)])
      buffers.bytes = pattern(4096, seed: 5)
      try file.write(from: buffers.list.readable, at: 512)
      buffers.bytes = pattern(4096, seed: 6)
      #expect(try file.read(into: buffers.list.readable, at: 512) == 4096)
      #expect(buffers.bytes == pattern(4096, seed: 5))
      try file.writeZeroes(at: 65536, count: 65536, unmap: false)
      try file.writeZeroes(at: 131072, count: 65536, unmap: true)
      try file.discard(at: 262144, count: 65536)
      let before = try contents(file)
      try file.discard(at: 1, count: 8190)
      #expect(try contents(file) == before, "no whole block of the device")
      try file.writeZeroes(at: 600_000, count: 100, unmap: false)
      try file.writeZeroes(at: 700_001, count: 9000, unmap: true)
      var expected = before
      expected.replaceSubrange(600_000..<600_100, with: repeatElement(0, count: 100))
      expected.replaceSubrange(700_001..<709_001, with: repeatElement(0, count: 9000))
      #expect(try contents(file) == expected, "parts of blocks are written")
      expect(EOPNOTSUPP) { try file.secureErase(at: 0, count: 4096) }
      try file.flush()
      let zeros = try Buffers([(0, 131072)])
      zeros.bytes = pattern(131072)
      #expect(try file.read(into: zeros.list.readable, at: 65536) == 131072)
      #expect(zeros.bytes == [UInt8](repeating: 0, count: 131072))
      expect(EBUSY) { _ = try BlockFile(path: device) }
    }
  }
}
