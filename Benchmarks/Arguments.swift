import ArgumentParser
import Foundation

/// The numbers above 0 that an option lists, with commas between them.
func numbers(_ text: String, _ option: String) throws -> [Int] {
  try text.split(separator: ",").map { word in
    guard let number = Int(word), number > 0 else {
      throw ValidationError("\(option): \(word) is not a number above 0")
    }
    return number
  }
}

/// Sluice's command in the folder of this program, where one build puts both.
func commandBeside() throws -> String {
  let me = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
  return URL(fileURLWithPath: me).deletingLastPathComponent().appendingPathComponent("sluice").path
}
