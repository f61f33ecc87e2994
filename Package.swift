// swift-tools-version: 6.3
// The floors of the package, lowest first. An arrow (an import) only ever points down: `ArchitectureTests` checks it.
import Foundation
import PackageDescription

let checks: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatWarning("StrictMemorySafety", as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableExperimentalFeature("Lifetimes"),
]

let log: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")

func module(_ name: String, _ imports: [Target.Dependency]) -> Target {
  .target(name: name, dependencies: imports, path: "Sources/\(name)", swiftSettings: checks)
}

func tests(_ name: String, _ imports: [Target.Dependency]) -> Target {
  .testTarget(name: name, dependencies: imports, path: "Tests/\(name)", swiftSettings: checks)
}

var targets: [Target] = [
  // floor 0
  .target(name: "CLinux", path: "Sources/CLinux", linkerSettings: [.linkedLibrary("uring")]),
  // floor 1
  module("DMA", ["CLinux"]),
  // floor 2
  module("HostIO", ["CLinux", "DMA"]),
  module("PCI", ["DMA"]),
  module("Virtio", ["DMA"]),
  module("IOMMUs", ["DMA"]),
  // floor 3
  module("VirtioServing", ["DMA", "HostIO", "Virtio", log]),
  module("VirtioDevices", ["DMA", "HostIO", "Virtio"]),
  module("VirtioDrivers", ["DMA", "PCI", "Virtio"]),
  // floor 4
  module("IOMMUDrivers", ["DMA", "VirtioDrivers"]),
  module("VirtioPCI", ["DMA", "HostIO", "PCI", "Virtio", "VirtioServing", log]),
  module("VirtioMMIO", ["DMA", "HostIO", "Virtio", "VirtioServing", log]),
  module("NVMe", ["DMA", "HostIO", "PCI", "VirtioDevices", "VirtioDrivers"]),
  module("VhostUser", ["DMA", "HostIO", "Virtio", "VirtioServing", log]),
  // floor 5
  module(
    "Machine",
    [
      "DMA", "HostIO", "PCI", "Virtio", "IOMMUs", "VirtioDevices", "VirtioDrivers", "VirtioPCI", "VirtioMMIO",
      "IOMMUDrivers", "NVMe", log,
    ]),
  module("VhostUserCheck", ["DMA", "HostIO", "Virtio", "VirtioDrivers", "VhostUser"]),
  // floor 6
  .executableTarget(
    name: "sluice",
    dependencies: [
      "DMA", "HostIO", "Virtio", "VirtioServing", "VirtioDevices", "VhostUser", "VhostUserCheck", "Machine", log,
      arguments,
    ],
    path: "Sources/sluice", swiftSettings: checks),
  .executableTarget(
    name: "sluice-bench",
    dependencies: [
      "DMA", "HostIO", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VhostUser", "FrontendKit",
      "VirtioTestKit", "MemoryModel", "Machine", "QTestKit", "LeastBackend", arguments,
    ],
    path: "Benchmarks", swiftSettings: checks),
  // tests
  .target(name: "SlowFiles", path: "Tests/Support/SlowFiles"),
  .target(
    name: "VirtioTestKit", dependencies: ["DMA", "HostIO", "SlowFiles", "Virtio", "VirtioDrivers", log],
    path: "Tests/Support/VirtioTestKit", swiftSettings: checks),
  tests(
    "VirtioDevicesTests", ["CLinux", "DMA", "HostIO", "Virtio", "VirtioDevices", "VirtioDrivers", "VirtioTestKit"]),
  // A machine with a bus for tests: what devices on it are and do is in VirtioTestKit.
  .target(
    name: "MachineKit",
    dependencies: [
      "DMA", "HostIO", "PCI", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VirtioPCI", "VirtioTestKit",
      log,
    ],
    path: "Tests/Support/MachineKit", swiftSettings: checks),
  tests("MachineTests", ["Machine", "Virtio"]),
  // Random machines against a naive model of their memory: for a test, and for hours by a command.
  .target(
    name: "MemoryModel",
    dependencies: [
      "DMA", "HostIO", "PCI", "Virtio", "IOMMUs", "VirtioServing", "VirtioDrivers", "VirtioPCI", "VirtioTestKit", log,
    ],
    path: "Tests/Support/MemoryModel", swiftSettings: checks),
  tests("MemoryModelTests", ["MemoryModel"]),
  tests("HostIOTests", ["DMA", "HostIO", "VirtioTestKit"]),
  tests("IOMMUsTests", ["DMA", "IOMMUs", "VirtioTestKit"]),
  tests(
    "IOMMUDriversTests",
    [
      "DMA", "HostIO", "IOMMUs", "IOMMUDrivers", "PCI", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers",
      "VirtioPCI", "MachineKit", "VirtioTestKit",
    ]),
  tests("DMATests", ["DMA", "HostIO", "VirtioTestKit"]),
  tests("PCITests", ["DMA", "PCI", "MachineKit", "VirtioTestKit"]),
  tests(
    "VirtioPCITests",
    [
      "DMA", "HostIO", "PCI", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VirtioPCI", "MachineKit",
      "VirtioTestKit",
    ]),
  tests(
    "VirtioMMIOTests",
    [
      "DMA", "HostIO", "IOMMUs", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VirtioMMIO",
      "MachineKit", "VirtioTestKit", log,
    ]),
  tests(
    "NVMeTests",
    ["DMA", "HostIO", "IOMMUs", "NVMe", "PCI", "VirtioDevices", "VirtioDrivers", "MachineKit", "VirtioTestKit"]),
  tests(
    "HostileDriverTests",
    [
      "DMA", "HostIO", "PCI", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VirtioPCI", "VirtioMMIO",
      "MachineKit", "VirtioTestKit", log,
    ]),
  tests("VirtioTests", ["DMA", "Virtio", "VirtioDrivers", "VirtioTestKit"]),
  tests("VirtioDriversTests", ["DMA", "HostIO", "Virtio", "VirtioDevices", "VirtioDrivers", "VirtioTestKit"]),
  tests(
    "VhostUserTests",
    ["DMA", "HostIO", "Virtio", "VirtioServing", "VirtioDevices", "VirtioDrivers", "VhostUser", "VirtioTestKit", log]),
  // Drivers at the other end of a connection, for tests and benchmarks.
  .target(
    name: "FrontendKit", dependencies: ["DMA", "HostIO", "Virtio", "VirtioDrivers", "VhostUser"],
    path: "Tests/Support/FrontendKit", swiftSettings: checks),
  tests(
    "FrontendTests",
    [
      "DMA", "HostIO", "Virtio", "VirtioDrivers", "VirtioServing", "VirtioDevices", "VhostUser", "FrontendKit",
      "VirtioTestKit",
      log,
    ]),
  tests(
    "VhostUserCheckTests",
    [
      "DMA", "HostIO", "Virtio", "VirtioServing", "VirtioDevices", "VhostUser", "VhostUserCheck", "VirtioTestKit", log,
    ]),
  // A driver for QEMU's own virtio-pci and VT-d; depends on nothing of ours, so that it can be a referee.
  .target(name: "QTestKit", dependencies: [], path: "Tests/Support/QTestKit", swiftSettings: checks),
  tests("QEMUTests", ["QTestKit"]),
  // The least a back-end behind an IOMMU can do, for a benchmark to compare with.
  .target(name: "LeastBackend", path: "Tests/Support/LeastBackend"),
  tests("VirtioServingTests", ["DMA", "HostIO", "Virtio", "VirtioServing", "VirtioTestKit", log]),
  // The command, run as a process of its own.
  tests("CommandTests", ["sluice", "DMA", "HostIO", "Virtio", "VhostUser", "FrontendKit", "VirtioTestKit"]),
  // What the sources must be, read from their text; depends on nothing of ours.
  tests("ArchitectureTests", []),
  // The rules of the DMA path: the table, and what a queue may touch.
  tests("RulesTests", []),
  tests("ConfinementTests", ["DMA", "HostIO", "Virtio", "VirtioDevices", "VirtioTestKit"]),
]

// Fuzz targets need a sanitizer on everything below them, so they exist only when asked for: see Scripts/fuzz.
if ProcessInfo.processInfo.environment["SLUICE_FUZZ"] != nil {
  let fuzzed: [(String, [Target.Dependency])] = [
    ("SplitChain", ["VirtioTestKit"]),
    ("PackedChain", ["VirtioTestKit"]),
    ("IOMMURequests", ["DMA", "Virtio", "VirtioDevices", "VirtioTestKit"]),
    ("VhostUserMessages", ["DMA", "HostIO", "VirtioDevices", "VhostUser", log]),
  ]
  for (name, imports) in fuzzed {
    targets.append(
      .executableTarget(
        name: "Fuzz\(name)", dependencies: imports, path: "Fuzz/\(name)",
        swiftSettings: [.swiftLanguageMode(.v6), .unsafeFlags(["-parse-as-library"])],
        linkerSettings: [.unsafeFlags(["-sanitize=fuzzer"])]))
  }
}

let package = Package(
  name: "sluice",
  platforms: [.macOS(.v26)],
  products: [
    .library(name: "DMA", targets: ["DMA"]),
    .library(name: "HostIO", targets: ["HostIO"]),
    .library(name: "PCI", targets: ["PCI"]),
    .library(name: "Virtio", targets: ["Virtio"]),
    .library(name: "IOMMUs", targets: ["IOMMUs"]),
    .library(name: "VirtioServing", targets: ["VirtioServing"]),
    .library(name: "VirtioDevices", targets: ["VirtioDevices"]),
    .library(name: "VirtioDrivers", targets: ["VirtioDrivers"]),
    .library(name: "IOMMUDrivers", targets: ["IOMMUDrivers"]),
    .library(name: "VirtioPCI", targets: ["VirtioPCI"]),
    .library(name: "VirtioMMIO", targets: ["VirtioMMIO"]),
    .library(name: "Machine", targets: ["Machine"]),
    .library(name: "NVMe", targets: ["NVMe"]),
    .library(name: "VhostUser", targets: ["VhostUser"]),
    .library(name: "VhostUserCheck", targets: ["VhostUserCheck"]),
    .executable(name: "sluice", targets: ["sluice"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: targets
)
