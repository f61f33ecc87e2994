public import Foundation

/// A folder that goes away with its owner.
public final class TemporaryFolder: Sendable {
  public let url: URL

  public init(under parent: URL = FileManager.default.temporaryDirectory) throws {
    url = parent.appending(path: "sluice-\(UUID().uuidString.prefix(8))")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  public func path(_ name: String) -> String { url.appending(path: name).path }

  /// Makes a file of these bytes and returns its path.
  public func file(_ name: String, _ bytes: [UInt8]) throws -> String {
    try Data(bytes).write(to: URL(filePath: path(name)))
    return path(name)
  }

  /// Makes a file of a size, all hole, and returns its path.
  public func image(_ name: String = "disk.img", size: UInt64 = 1 << 20) throws -> String {
    let path = try file(name, [])
    try Self.truncate(path, size)
    return path
  }

  /// Gives a file another size.
  public static func truncate(_ path: String, _ size: UInt64) throws {
    let file = try FileHandle(forWritingTo: URL(filePath: path))
    try file.truncate(atOffset: size)
    try file.close()
  }
}
