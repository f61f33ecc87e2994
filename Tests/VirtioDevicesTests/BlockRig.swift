import DMA
import Foundation
import HostIO
import Synchronization
import Virtio
import VirtioDevices

/// A file that goes away with its owner.
final class ScratchFile {
  let path: String
  private let isOurs: Bool

  /// A file or device that stays.
  init(at path: String) {
    self.path = path
    isOurs = false
  }

  /// `directory` nil: the system's temporary one.
  init(_ bytes: [UInt8], in directory: String? = nil) throws {
    isOurs = true
    path = "\(directory ?? FileManager.default.temporaryDirectory.path)/sluice-\(UUID().uuidString).img"
    try Data(bytes).write(to: URL(filePath: path))
  }

  /// A file of a size, all hole.
  convenience init(size: Int, in directory: String? = nil) throws {
    try self.init([], in: directory)
    try truncate(size)
  }

  func truncate(_ size: Int) throws {
    let file = try FileHandle(forWritingTo: URL(filePath: path))
    try file.truncate(atOffset: UInt64(size))
    try file.close()
  }

  var bytes: [UInt8] { (try? Data(contentsOf: URL(filePath: path))).map { [UInt8]($0) } ?? [] }

  /// Bytes of storage it takes.
  var allocated: Int {
    get throws { Int(try BlockFile(path: path, options: .init(readOnly: true, locked: false)).allocatedSize()) }
  }

  deinit { if isOurs { try? FileManager.default.removeItem(atPath: path) } }
}

/// Keeps the lines that a device reports.
final class Lines: Sendable {
  private let lines = Mutex<[String]>([])
  func add(_ line: String) { lines.withLock { $0.append(line) } }
  var all: [String] { lines.withLock { $0 } }
}

private let patterns = Mutex<[UInt64: [UInt8]]>([:])

/// Bytes that no other seed gives: a shorter pattern of the same seed is the start of a longer one.
func pattern(_ count: Int, seed: UInt64 = 1) -> [UInt8] {
  let known = patterns.withLock { $0[seed] } ?? []
  if known.count >= count { return Array(known[..<count]) }
  var x = seed &* 0x9E37_79B9_7F4A_7C15 | 1
  let bytes = (0..<count).map { _ in
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    return UInt8(truncatingIfNeeded: x >> 32)
  }
  patterns.withLock { $0[seed] = bytes }
  return bytes
}

/// Requests as §5.2.6 lays them out, written independently of the device's own layouts.
enum Wire {
  static func header(_ type: UInt32, _ sector: UInt64 = 0) -> [UInt8] {
    var w = WireWriter()
    w.write(type)
    w.write(UInt32(0xAABB_CCDD))
    w.write(sector)
    return w.bytes
  }
  static func range(_ sector: UInt64, _ count: UInt32, flags: UInt32 = 0) -> [UInt8] {
    var w = WireWriter()
    w.write(sector)
    w.write(count)
    w.write(flags)
    return w.bytes
  }
}

extension DeviceRig {
  func readDisk(_ sector: UInt64, _ count: Int) throws -> (status: UInt8, used: UInt32, data: [UInt8]) {
    let r = try perform(readable: [Wire.header(0, sector)], writable: [count, 1])
    return (r.bytes[count], r.used, Array(r.bytes[..<count]))
  }
  func writeDisk(_ sector: UInt64, _ data: [UInt8]) throws -> (status: UInt8, used: UInt32) {
    let r = try perform(readable: [Wire.header(1, sector), data], writable: [1])
    return (r.bytes[0], r.used)
  }
  /// A request of this type with this data, and one byte of status.
  func command(_ type: UInt32, _ data: [UInt8] = []) throws -> (status: UInt8, used: UInt32) {
    let r = try perform(readable: data.isEmpty ? [Wire.header(type)] : [Wire.header(type), data], writable: [1])
    return (r.bytes[0], r.used)
  }
}

/// How requests reach the host: each engine, and the ring's own variety of reading around the page cache.
struct EngineKind: Hashable, CustomStringConvertible {
  var engine: BlockEngine
  var direct = false
  var description: String { "\(engine.rawValue)\(direct ? " direct" : "")" }
  static let all = BlockEngine.allCases.flatMap { [Self(engine: $0), Self(engine: $0, direct: true)] }
  static let buffered = BlockEngine.allCases.map { Self(engine: $0) }

  func options(_ file: ScratchFile) -> BlockOptions {
    var options = BlockOptions(path: file.path)
    options.engine = engine
    options.direct = direct
    options.sizePollInterval = nil
    return options
  }

  func device(_ file: ScratchFile, _ change: (inout BlockOptions) -> Void = { _ in }) throws -> BlockDevice {
    var options = options(file)
    change(&options)
    return try BlockDevice(options)
  }

  func rig(
    _ file: ScratchFile, kind: RingKind = RingKind(), _ change: (inout BlockOptions) -> Void = { _ in }
  ) throws -> DeviceRig {
    try DeviceRig(device(file, change), kind: kind)
  }
}
