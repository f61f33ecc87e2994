import Testing

/// The floors, lowest first. A new target gets a line here, or the tests say so.
private let floors: [[String]] = [
  ["CLinux"],
  ["DMA"],
  ["HostIO", "IOMMUInterface", "Virtio", "DriverDMA"],
  ["PCI", "IOMMUs", "Storage", "VirtioServing", "SocketMessages", "Examination"],
  [
    "VirtioDrivers", "IOMMUDrivers", "VirtioBlock", "VirtioEntropy", "VirtioIOMMU", "NVMe", "VirtioPCI", "VirtioMMIO",
    "VhostUser", "VfioUser",
  ],
  ["DeviceCatalog", "VhostUserBackend", "VhostUserFrontend", "VfioUserCheck"],
  ["Machine", "VhostUserCheck"],
  ["sluice"],
]

/// The folders of Sources, and what each is for: a target is in the folder of its kind.
private let folders = [
  "Memory", "Specification", "IOMMUs", "Drivers", "Devices", "Transports", "Servers", "Machine", "Command",
]

/// Modules of other packages, and the targets that may use them.
private let outside: [String: Set<String>] = [
  "Logging": ["VirtioServing", "VhostUserBackend", "VfioUser", "VirtioPCI", "VirtioMMIO", "Machine", "sluice"],
  "ArgumentParser": ["sluice"],
]

/// Modules of the toolchain that any target may import.
private let toolchain: Set<String> = ["Swift", "Synchronization", "Testing", "Dispatch"]

/// Modules of the toolchain for the top floor, tests and benchmarks only.
private let upstairs: Set<String> = ["Foundation", "FoundationEssentials", "Glibc", "RegexBuilder"]

/// Who may import the system: the target that wraps it.
private let system = ["HostIO": "Glibc"]

@Suite("Arrows point down")
struct ArrowTests {
  let manifest: Manifest

  init() throws { manifest = try Manifest.shared.get() }

  private func floor(_ target: String) -> Int? { floors.firstIndex { $0.contains(target) } }

  /// The targets users get: what products are made of.
  private var shipped: [Manifest.Target] {
    let names = Set(manifest.products.flatMap(\.targets))
    return manifest.targets.filter { names.contains($0.name) || $0.name == "CLinux" }
  }

  @Test("Every target that users get has a floor, and every floor's target exists")
  func everyTargetHasAFloor() {
    for target in shipped {
      #expect(floor(target.name) != nil, "\(target.name) is on no floor: add it to the table in this file")
    }
    let names = Set(manifest.targets.map(\.name))
    for name in floors.flatMap(\.self) {
      #expect(names.contains(name), "\(name) is in the table and not in the package")
    }
  }

  @Test("A target imports from lower floors only: never upwards, never sideways")
  func arrowsPointDown() {
    var count = 0
    for target in shipped {
      guard let own = floor(target.name) else { continue }
      let path = target.path ?? ""
      #expect(folders.contains { path == "Sources/\($0)/\(target.name)" }, "\(target.name) is at \(path)")
      for module in target.modules {
        count += 1
        guard let other = floor(module) else {
          Issue.record("\(target.name) → \(module), which is not part of the product")
          continue
        }
        #expect(other < own, "\(target.name) (floor \(own)) → \(module) (floor \(other))")
      }
      for product in target.products {
        #expect(outside[product]?.contains(target.name) == true, "\(target.name) → \(product): not agreed on")
      }
    }
    print("architecture: \(shipped.count) targets, \(count) arrows, all pointing down")
    #expect(count > 10)
  }

  @Test("Test support is reached by tests and benchmarks only")
  func testSupportStaysBelow() {
    let support = Set(manifest.targets.filter { $0.path?.hasPrefix("Tests/") == true }.map(\.name))
    #expect(!support.isEmpty)
    for target in shipped {
      #expect(support.isDisjoint(with: target.modules), "\(target.name) depends on test support")
    }
  }

  @Test("A file imports what its target declares, and nothing else")
  func importsAreDeclared() throws {
    var count = 0
    for target in manifest.targets {
      let path = target.path ?? "Sources/\(target.name)"
      let isUpstairs = target.name == "sluice" || !shipped.contains { $0.name == target.name }
      let declared = Set(target.modules + target.products)
      for file in try Repository.files(below: [path], [".swift"]) {
        for (number, line) in file.codeLines.enumerated() {
          guard let module = importedModule(line) else { continue }
          count += 1
          let isKnown =
            declared.contains(module) || toolchain.contains(module) || (isUpstairs && upstairs.contains(module))
            || system[target.name] == module
          #expect(isKnown, "\(file.path):\(number + 1): import \(module) is not declared for \(target.name)")
        }
      }
    }
    #expect(count > 50)
  }

  /// The module of `import M`, `public import struct M.T`, `@testable import M`; nil for other lines.
  private func importedModule(_ line: Substring) -> String? {
    var words = line.split(separator: " ").map(String.init)
    while let first = words.first,
      [
        "public", "package", "internal", "fileprivate", "private", "@testable", "@_exported", "@preconcurrency",
        "unsafe",
      ].contains(first)
    {
      words.removeFirst()
    }
    guard words.first == "import", words.count > 1 else { return nil }
    let kinds = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"]
    let name = kinds.contains(words[1]) && words.count > 2 ? words[2] : words[1]
    return String(name.prefix { $0 != "." })
  }
}
