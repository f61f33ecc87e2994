import ArgumentParser
import Foundation

/// This program once more under valgrind, which counts instructions where the machine does not.
final class Callgrind {
  private static let valgrind = "/usr/bin/valgrind"
  private let program: String

  /// A copy of this program that valgrind can read: it gives up on some compilers' debug information.
  init() throws {
    guard FileManager.default.isExecutableFile(atPath: Self.valgrind) else {
      throw ValidationError("--instructions needs \(Self.valgrind): apt-get install valgrind")
    }
    let me = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    program = FileManager.default.temporaryDirectory.appending(path: "sluice-bench-\(UUID().uuidString)").path
    let strip = try Process.run(URL(filePath: "/usr/bin/strip"), arguments: ["--strip-debug", "-o", program, me])
    strip.waitUntilExit()
    guard strip.terminationStatus == 0 else { throw ValidationError("strip \(me): exit status \(strip.terminationStatus)") }
  }

  deinit { try? FileManager.default.removeItem(atPath: program) }

  /// Instructions of a run with these arguments, all threads together. Throws what it wrote if it failed: what was
  /// counted until then is no figure.
  func count(_ arguments: [String]) throws -> Double {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: Self.valgrind)
    process.arguments = ["--tool=callgrind", "--callgrind-out-file=/dev/null", program] + arguments
    process.standardOutput = FileHandle.nullDevice
    process.standardError = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    let lines = text.split(separator: "\n")
    process.waitUntilExit()
    // "==123== Collected : 4711"
    let collected = lines.first { $0.contains("Collected :") }?.split(separator: " ").last.flatMap { Double($0) }
    guard process.terminationStatus == 0, let collected else {
      let own = lines.filter { !$0.hasPrefix("==") }.joined(separator: "\n")
      throw ValidationError("\(arguments.joined(separator: " ")): exit status \(process.terminationStatus): \(own)")
    }
    return collected
  }
}
