import Testing

/// The targets that may touch pointers.
private let unsafeTargets = ["DMA", "HostIO"]

@Suite("Unsafe code is in two modules, and says why it is right")
struct UnsafeTests {
  /// Places in a file that step outside the checked language.
  private func places(_ file: Repository.File) -> [(line: Int, what: String)] {
    var found: [(Int, String)] = []
    for (number, line) in file.codeLines.enumerated() {
      for word in line.words where word == "unsafe" || word == "unchecked" || word == "unsafeBitCast" {
        found.append((number + 1, String(word)))
      }
    }
    return found
  }

  @Test("No file outside DMA and HostIO says unsafe or unchecked: sources, tests, benchmarks")
  func unsafeStaysHome() throws {
    for file in try Repository.allSwift() {
      if file.folders[0] == "Sources", unsafeTargets.contains(file.folders[2]) { continue }
      for place in places(file) { Issue.record("\(file.path):\(place.line): \(place.what)") }
    }
  }

  @Test("Unsafe expressions are counted")
  func count() throws {
    for target in unsafeTargets {
      let files = try Repository.files(below: ["Sources/Memory/\(target)"], [".swift"])
      let all = files.flatMap(places)
      let reasons = files.reduce(0) { $0 + $1.lines.count { $0.contains("// Safe") } }
      let conformances = all.count { $0.what == "unchecked" }
      print(
        "architecture: \(target): \(all.count - conformances) unsafe, \(conformances) unchecked, \(reasons) written reasons"
      )
      #expect(!all.isEmpty, "the count finds what is there")
    }
  }

  @Test("Every file with unsafe code gives a reason, every unchecked conformance gives its own")
  func reasons() throws {
    for file in try Repository.files(below: unsafeTargets.map { "Sources/Memory/\($0)" }, [".swift"]) {
      let found = places(file)
      guard !found.isEmpty else { continue }
      let lines = file.lines
      #expect(lines.contains { $0.contains("// Safe") }, "\(file.path): no line starts with // Safe:")
      for place in found where place.what == "unchecked" {
        let near = lines[max(0, place.line - 4)..<min(lines.count, place.line + 3)]
        #expect(
          near.contains { $0.contains("// Safe") }, "\(file.path):\(place.line): unchecked without a reason beside it")
      }
    }
  }

  @Test("Every target is compiled with strict memory safety as an error")
  func isChecked() throws {
    let manifest = try #require(Repository.files(below: ["."], ["Package.swift"]).first { $0.path == "Package.swift" })
    #expect(manifest.text.contains(".strictMemorySafety()"))
    #expect(manifest.text.contains(#".treatWarning("StrictMemorySafety", as: .error)"#))
  }
}
