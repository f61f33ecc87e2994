import ArgumentParser
import Foundation

/// A program, this one unless said otherwise, under valgrind, which counts instructions where the machine does not.
final class Callgrind {
  private static let valgrind = "/usr/bin/valgrind"
  private let program: String

  /// A copy that valgrind can read: it gives up on some compilers' debug information.
  init(_ other: String? = nil) throws {
    guard FileManager.default.isExecutableFile(atPath: Self.valgrind) else {
      throw ValidationError("--instructions needs \(Self.valgrind): apt-get install valgrind")
    }
    let original = try other ?? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    program = FileManager.default.temporaryDirectory.appending(path: "sluice-bench-\(UUID().uuidString)").path
    let strip = try Process.run(URL(filePath: "/usr/bin/strip"), arguments: ["--strip-debug", "-o", program, original])
    strip.waitUntilExit()
    guard strip.terminationStatus == 0 else {
      throw ValidationError("strip \(original): exit status \(strip.terminationStatus)")
    }
  }

  deinit { try? FileManager.default.removeItem(atPath: program) }

  /// Instructions of a run with these arguments, all threads together. Throws what it wrote if it failed: what was
  /// counted until then is no figure.
  func count(_ arguments: [String]) throws -> Double {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: Self.valgrind)
    process.arguments = options + [program] + arguments
    process.standardOutput = FileHandle.nullDevice
    process.standardError = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    guard process.terminationStatus == 0, let collected = Self.collected(text) else {
      let own = text.split(separator: "\n").filter { !$0.hasPrefix("==") }.joined(separator: "\n")
      throw ValidationError("\(arguments.joined(separator: " ")): exit status \(process.terminationStatus): \(own)")
    }
    return collected
  }

  private var options: [String] { ["--tool=callgrind", "--callgrind-out-file=/dev/null"] }

  /// What valgrind says at the end of all that it wrote: "==123== Collected : 4711".
  static func collected(_ text: String) -> Double? {
    text.split(separator: "\n").last { $0.contains("Collected :") }?.split(separator: " ").last.flatMap { Double($0) }
  }

  /// Makes a command at `path` that starts the program under valgrind, for scripts that start it by its name.
  func makeCommand(at path: String) throws {
    let words = ([Self.valgrind] + options + [program]).joined(separator: " ")
    try "#!/bin/sh\nexec \(words) \"$@\"\n".write(toFile: path, atomically: true, encoding: .utf8)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
  }
}
