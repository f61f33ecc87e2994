import Foundation

/// The package as SwiftPM understands it.
struct Manifest: Decodable {
  struct Target: Decodable {
    var name: String
    var type: String
    var path: String?
    var dependencies: [Dependency]

    var modules: [String] { dependencies.compactMap(\.module) }
    var products: [String] { dependencies.compactMap(\.product) }
  }

  /// One arrow: to a target of this package, or to a product of another one.
  struct Dependency: Decodable {
    var module: String?
    var product: String?

    private enum Key: String, CodingKey { case byName, target, product }

    init(from decoder: any Decoder) throws {
      let keys = try decoder.container(keyedBy: Key.self)
      if keys.contains(.product) {
        var list = try keys.nestedUnkeyedContainer(forKey: .product)
        product = try list.decode(String.self)
      } else {
        var list = try keys.nestedUnkeyedContainer(forKey: keys.contains(.target) ? .target : .byName)
        module = try list.decode(String.self)
      }
    }
  }

  struct Product: Decodable {
    var name: String
    var targets: [String]
  }

  var targets: [Target]
  var products: [Product]

  struct Failure: Error, CustomStringConvertible { var description: String }

  /// What SwiftPM says, asked once.
  static let shared = Result { try load() }

  /// Asks SwiftPM. It works in a scratch folder of its own: the folder of the build is locked while tests run.
  private static func load() throws -> Manifest {
    let scratch = FileManager.default.temporaryDirectory.appendingPathComponent(
      "sluice-manifest-\(ProcessInfo.processInfo.processIdentifier)")
    defer { try? FileManager.default.removeItem(at: scratch) }
    try FileManager.default.createDirectory(at: scratch, withIntermediateDirectories: true)
    let answer = scratch.appendingPathComponent("manifest.json")
    let complaint = scratch.appendingPathComponent("complaint")
    for file in [answer, complaint] { _ = FileManager.default.createFile(atPath: file.path, contents: nil) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [
      "swift", "package", "--package-path", Repository.root.path, "--scratch-path", scratch.path, "dump-package",
    ]
    process.standardOutput = try FileHandle(forWritingTo: answer)
    process.standardError = try FileHandle(forWritingTo: complaint)
    let ended = DispatchSemaphore(value: 0)
    process.terminationHandler = { _ in ended.signal() }
    try process.run()
    guard ended.wait(timeout: .now() + 120) == .success else {
      process.terminate()
      throw Failure(description: "swift package dump-package did not end within two minutes")
    }
    guard process.terminationStatus == 0 else {
      throw Failure(description: "swift package dump-package: \(try String(contentsOf: complaint, encoding: .utf8))")
    }
    return try JSONDecoder().decode(Manifest.self, from: Data(contentsOf: answer))
  }
}
