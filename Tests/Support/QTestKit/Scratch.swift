import Foundation

/// A folder of one session: sockets, images, logs. Removed with its owner.
public final class Scratch {
  /// Where it is; short, because a socket's path may have 107 bytes only.
  public let path: String

  public init() throws(QTestError) {
    path = "/tmp/qtk-\(UUID().uuidString.prefix(13))"
    do {
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    } catch {
      throw .file("cannot create \(path): \(error)")
    }
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  /// The path of a file of this folder.
  public func file(_ name: String) -> String { "\(path)/\(name)" }

  /// Creates a file of this folder with these bytes.
  @discardableResult
  public func write(_ bytes: [UInt8], to name: String) throws(QTestError) -> String {
    let target = file(name)
    do {
      try Data(bytes).write(to: URL(fileURLWithPath: target))
    } catch {
      throw .file("cannot write \(target): \(error)")
    }
    return target
  }

  /// The bytes of a file, from outside, as another process would see them.
  public static func read(_ path: String, at offset: Int = 0, count: Int) throws(QTestError) -> [UInt8] {
    do {
      let handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
      defer { try? handle.close() }
      try handle.seek(toOffset: UInt64(offset))
      return Array(try handle.read(upToCount: count) ?? Data())
    } catch {
      throw .file("cannot read \(path): \(error)")
    }
  }
}
