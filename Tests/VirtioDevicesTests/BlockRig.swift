import DMA
import Foundation
import HostIO
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

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

  func truncate(_ size: Int) throws { try TemporaryFolder.truncate(path, UInt64(size)) }

  var bytes: [UInt8] { (try? Data(contentsOf: URL(filePath: path))).map { [UInt8]($0) } ?? [] }

  /// Bytes of storage it takes.
  var allocated: Int {
    get throws { Int(try BlockFile(path: path, options: .init(readOnly: true, locked: false)).allocatedSize()) }
  }

  deinit { if isOurs { try? FileManager.default.removeItem(atPath: path) } }
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
  var engine: DiskEngine
  var direct = false
  var description: String { "\(engine.rawValue)\(direct ? " direct" : "")" }
  static let all = DiskEngine.allCases.flatMap { [Self(engine: $0), Self(engine: $0, direct: true)] }
  static let buffered = DiskEngine.allCases.map { Self(engine: $0) }

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

  /// A file of these bytes, and a driver of the disk in it.
  func disk(
    _ bytes: [UInt8] = pattern(65536), in directory: String? = nil, kind: RingKind = RingKind(),
    _ change: (inout BlockOptions) -> Void = { _ in }
  ) throws -> (file: ScratchFile, rig: DeviceRig) {
    let file = try ScratchFile(bytes, in: directory)
    return (file, try rig(file, kind: kind, change))
  }
  /// The same of a file that is all hole.
  func disk(
    size: Int, kind: RingKind = RingKind(), _ change: (inout BlockOptions) -> Void = { _ in }
  ) throws -> (file: ScratchFile, rig: DeviceRig) {
    let file = try ScratchFile(size: size)
    return (file, try rig(file, kind: kind, change))
  }

  func rig(
    _ file: ScratchFile, kind: RingKind = RingKind(), _ change: (inout BlockOptions) -> Void = { _ in }
  ) throws -> DeviceRig {
    try DeviceRig(device(file, change), kind: kind)
  }
}
