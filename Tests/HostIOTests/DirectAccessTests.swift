import DMA
import Foundation
import Glibc
import HostIO
import Synchronization
import Testing
import VirtioTestKit

/// Whether the temporary directory takes O_DIRECT at all.
private func hasDirectAccess() -> Bool {
  guard let directory = try? TemporaryFolder(), let path = try? directory.file("probe", pattern(8192)) else {
    return false
  }
  return (try? BlockFile(path: path, options: .init(direct: true))) != nil
}

@Suite(
  "Direct access", .enabled("SKIPPED: the temporary directory's file system has no O_DIRECT") { hasDirectAccess() })
struct DirectAccessTests {
  private let directory: TemporaryFolder

  init() throws { directory = try TemporaryFolder() }

  @Test("Requests of every alignment, of memory and of position, read and write the same bytes as without")
  func alignments() throws {
    var expected = pattern(65536)
    let file = try BlockFile(path: try directory.file("disk", expected), options: .init(direct: true))
    #expect(file.isDirect && file.memoryAlignment >= 1 && file.positionAlignment >= 512)
    // What the disk looks like does not change with the way to it.
    #expect(file.geometry.logicalBlock == 512 && file.geometry.physicalBlock >= file.positionAlignment)
    let shapes: [[(Int, Int)]] = [
      [(4096, 4096)], [(4096, 4096), (12288, 8192)], [(4096, 512), (8192, 3584)],
      [(4097, 4096)], [(4096, 100), (8192, 412)], [(4096, 512)], [(4099, 16), (8192, 1), (12288, 9000)],
    ]
    for (seed, shape) in shapes.enumerated() {
      for position in [0, 512, 4096, 5120, 8192 - 7] {
        let buffers = try Buffers(shape)
        let count = shape.reduce(0) { $0 + $1.1 }
        #expect(try file.read(into: buffers.list.readable, at: UInt64(position)) == count)
        #expect(buffers.bytes == Array(expected[position..<position + count]))
        buffers.bytes = pattern(count, seed: seed + position)
        try file.write(from: buffers.list.readable, at: UInt64(position), durable: seed % 2 == 0)
        expected.replaceSubrange(position..<position + count, with: pattern(count, seed: seed + position))
      }
    }
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
  }

  @Test("An unaligned request larger than the memory in between goes through in parts")
  func largeUnaligned() throws {
    let size = 3 << 20
    var expected = pattern(size)
    let file = try BlockFile(path: try directory.file("disk", expected), options: .init(direct: true))
    let buffers = try Buffers([(1, 1_300_000), (2_000_001, 1_000_000)])
    #expect(try file.read(into: buffers.list.readable, at: 777) == 2_300_000)
    #expect(buffers.bytes == Array(expected[777..<2_300_777]))
    buffers.bytes = pattern(2_300_000, seed: 4)
    try file.write(from: buffers.list.readable, at: 777)
    expected.replaceSubrange(777..<2_300_777, with: pattern(2_300_000, seed: 4))
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
  }

  @Test("Zeroes of every alignment leave the bytes around them, discards give whole blocks back")
  func zeroes() throws {
    var expected = pattern(65536)
    let file = try BlockFile(path: try directory.file("disk", expected), options: .init(direct: true))
    for (position, count) in [(0, 4096), (5000, 1), (5100, 511), (8192 - 7, 14), (10001, 20000), (65536 - 9, 9)] {
      try file.writeZeroes(at: UInt64(position), count: UInt64(count), unmap: position % 2 == 0)
      expected.replaceSubrange(position..<position + count, with: repeatElement(0, count: count))
      #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected), "\(count) bytes at \(position)")
    }
    let unit = file.positionAlignment
    try file.discard(at: 32769, count: UInt64(unit))
    #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(expected))
    var ring = try IOUring(entries: 4)
    let queued = [
      ring.writeZeroes(file, at: 32768, count: UInt64(unit), tag: 1),
      ring.writeZeroes(file, at: 32768, count: UInt64(unit) - 1, tag: 2),
    ]
    #expect(queued == [.queued, .unsuitable])
  }

  @Test("An unaligned read ends at the end of the disk")
  func end() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(8192)), options: .init(direct: true))
    let buffers = try Buffers([(1, 1000)])
    #expect(try file.read(into: buffers.list.readable, at: 8000) == 192)
    #expect(Array(buffers.bytes[..<192]) == Array(pattern(8192)[8000...]))
    #expect(try file.read(into: buffers.list.readable, at: 9000) == 0)
    expect(EINVAL) { try file.write(from: buffers.list.readable, at: 8000) }
  }

  @Test("A size that direct access cannot reach to the end of is refused")
  func oddSize() throws {
    let path = try directory.file("disk", pattern(8192 + 100))
    expect(EINVAL) { _ = try BlockFile(path: path, options: .init(direct: true)) }
    // Growing to such a size counts whole blocks only.
    let file = try BlockFile(path: try directory.file("other", pattern(8192)), options: .init(direct: true))
    try #require(FileHandle(forWritingAtPath: file.path)).truncate(atOffset: 20000)
    #expect(try file.refreshSize())
    #expect(file.size == UInt64(20000 / file.positionAlignment * file.positionAlignment))
  }

  @Test("Neighbours within a block, written from two threads at once, do not lose each other's bytes")
  func neighbours() throws {
    let file = try BlockFile(
      path: try directory.file("disk", [UInt8](repeating: 0, count: 8192)), options: .init(direct: true))
    let unit = file.positionAlignment
    let failed = Shared(Atomic(false))
    let threads = try (0..<2).map { half in
      try WorkerThread(name: "half\(half)") {
        do {
          let buffers = try Buffers([(0, unit / 2)])
          for round in 1...50 {
            buffers.bytes = [UInt8](repeating: UInt8(round), count: unit / 2)
            try file.write(from: buffers.list.readable, at: UInt64(half * unit / 2))
            buffers.bytes = [UInt8](repeating: 0, count: unit / 2)
            _ = try file.read(into: buffers.list.readable, at: UInt64(half * unit / 2))
            if buffers.bytes != [UInt8](repeating: UInt8(round), count: unit / 2) {
              failed.value.store(true, ordering: .relaxed)
            }
          }
        } catch { failed.value.store(true, ordering: .relaxed) }
      }
    }
    for thread in threads { thread.join() }
    let lost = failed.value.load(ordering: .relaxed)
    #expect(!lost)
  }
}
