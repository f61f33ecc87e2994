// swift-tools-version: 6.3
// Grouped by the folders of Sources; a target follows those it imports. The floors of the targets, and that imports
// only lead to lower ones, are in Tests/ArchitectureTests/ArrowTests.swift.
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

func module(_ name: String, in folder: String, _ imports: [Target.Dependency]) -> Target {
  .target(name: name, dependencies: imports, path: "Sources/\(folder)/\(name)", swiftSettings: checks)
}

func tests(_ name: String, _ imports: [Target.Dependency]) -> Target {
  .testTarget(name: name, dependencies: imports, path: "Tests/\(name)", swiftSettings: checks)
}

var targets: [Target] = [
  // Memory: what everything stands on: guest memory, and this host
  .target(name: "CLinux", path: "Sources/Memory/CLinux", linkerSettings: [.linkedLibrary("uring")]),
  module("DMA", in: "Memory", ["CLinux"]),
  module("HostIO", in: "Memory", ["CLinux", "DMA"]),
  module("IOMMUInterface", in: "Memory", ["DMA"]),
  // Specification: what documents say, as types
  module("Virtio", in: "Specification", ["DMA"]),
  module("PCI", in: "Specification", ["DMA", "IOMMUInterface"]),
  // IOMMUs: IOMMUs as their drivers program them
  module("IOMMUs", in: "IOMMUs", ["DMA", "IOMMUInterface"]),
  // Drivers: the guest's side
  module("DriverDMA", in: "Drivers", ["DMA"]),
  module("VirtioDrivers", in: "Drivers", ["DMA", "IOMMUInterface", "Virtio", "PCI", "DriverDMA"]),
  module("IOMMUDrivers", in: "Drivers", ["DMA", "IOMMUInterface", "DriverDMA"]),
  // Devices: what a device does
  module("Storage", in: "Devices", ["DMA", "HostIO"]),
  module("VirtioServing", in: "Devices", ["DMA", "HostIO", "Virtio", log]),
  module("VirtioBlock", in: "Devices", ["DMA", "HostIO", "Virtio", "Storage"]),
  module("VirtioEntropy", in: "Devices", ["DMA", "HostIO", "Virtio"]),
  module("VirtioIOMMU", in: "Devices", ["DMA", "HostIO", "IOMMUInterface", "Virtio"]),
  module("NVMe", in: "Devices", ["DMA", "HostIO", "IOMMUInterface", "PCI", "DriverDMA", "Storage"]),
  module(
    "DeviceCatalog", in: "Devices",
    [
      "DMA", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "Storage", "VirtioBlock", "VirtioEntropy",
      "NVMe",
    ]),
  // Transports: how a driver meets a virtio device
  module("VirtioPCI", in: "Transports", ["DMA", "HostIO", "Virtio", "PCI", "VirtioServing", log]),
  module("VirtioMMIO", in: "Transports", ["DMA", "HostIO", "IOMMUInterface", "Virtio", "VirtioServing", log]),
  // Servers: devices for a machine in another process
  module("SocketMessages", in: "Servers", ["DMA", "HostIO"]),
  module("Examination", in: "Servers", ["HostIO"]),
  module("VhostUser", in: "Servers", ["DMA", "HostIO", "SocketMessages"]),
  module(
    "VfioUser", in: "Servers", ["DMA", "HostIO", "IOMMUInterface", "PCI", "VirtioServing", "SocketMessages", log]),
  module(
    "VhostUserBackend", in: "Servers",
    ["DMA", "HostIO", "Virtio", "VirtioServing", "SocketMessages", "VhostUser", log]),
  module("VhostUserFrontend", in: "Servers", ["DMA", "HostIO", "Virtio", "SocketMessages", "VhostUser"]),
  module(
    "VhostUserCheck", in: "Servers",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "VirtioDrivers", "SocketMessages", "Examination", "VhostUser",
      "VhostUserFrontend",
    ]),
  module(
    "VfioUserCheck", in: "Servers",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "NVMe", "SocketMessages",
      "Examination",
    ]),
  // Machine: a machine in one process
  module(
    "Machine", in: "Machine",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "IOMMUs", "DriverDMA", "VirtioDrivers", "IOMMUDrivers",
      "Storage", "VirtioIOMMU", "DeviceCatalog", "VirtioPCI", "VirtioMMIO", log,
    ]),
  // Command
  .executableTarget(
    name: "sluice",
    dependencies: [
      "HostIO", "Virtio", "PCI", "Storage", "VirtioServing", "VirtioBlock", "NVMe", "DeviceCatalog", "VirtioPCI",
      "VhostUser", "VfioUser", "VhostUserBackend", "Examination", "VhostUserCheck", "VfioUserCheck", "Machine", log,
      arguments,
    ], path: "Sources/Command/sluice", swiftSettings: checks),
  .executableTarget(
    name: "sluice-bench",
    dependencies: [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "Storage", "VirtioIOMMU",
      "NVMe",
      "DeviceCatalog", "VhostUser", "VhostUserFrontend", "Machine", "VirtioTestKit", "MemoryModel", "FrontendKit",
      "QTestKit",
      "MinimalBackend",
      arguments,
    ], path: "Benchmarks", swiftSettings: checks),
  // What tests and benchmarks share
  .target(name: "SlowFiles", path: "Tests/Support/SlowFiles"),
  .target(
    name: "VirtioTestKit",
    dependencies: ["DMA", "HostIO", "IOMMUInterface", "Virtio", "DriverDMA", "VirtioDrivers", "SlowFiles", log],
    path: "Tests/Support/VirtioTestKit", swiftSettings: checks),
  .target(
    name: "MemoryModel",
    dependencies: [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "IOMMUs", "DriverDMA", "VirtioDrivers", "VirtioServing",
      "VirtioPCI", "VirtioTestKit", log,
    ], path: "Tests/Support/MemoryModel", swiftSettings: checks),
  .target(
    name: "FrontendKit", dependencies: ["DMA", "HostIO", "Virtio", "DriverDMA", "VirtioDrivers", "VhostUserFrontend"],
    path: "Tests/Support/FrontendKit", swiftSettings: checks),
  .target(name: "QTestKit", dependencies: [], path: "Tests/Support/QTestKit", swiftSettings: checks),
  .target(name: "MinimalBackend", path: "Tests/Support/MinimalBackend"),
  .target(
    name: "MachineKit",
    dependencies: [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "Storage", "VirtioServing",
      "VirtioBlock", "VirtioPCI", "VirtioTestKit", log,
    ], path: "Tests/Support/MachineKit", swiftSettings: checks),
  // Tests
  tests("ArchitectureTests", []),
  tests(
    "CommandTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "VirtioServing", "SocketMessages", "VhostUser", "VhostUserFrontend",
      "sluice",
      "VirtioTestKit", "FrontendKit",
    ]),
  tests("ConfinementTests", ["DMA", "HostIO", "IOMMUInterface", "Virtio", "VirtioEntropy", "VirtioTestKit"]),
  tests("DMATests", ["DMA", "HostIO", "IOMMUInterface", "VirtioTestKit"]),
  tests(
    "FrontendTests",
    [
      "DMA", "HostIO", "Virtio", "Storage", "VirtioBlock", "SocketMessages", "VhostUser", "VhostUserBackend",
      "VhostUserFrontend",
      "VirtioTestKit", "FrontendKit", log,
    ]),
  tests("HostIOTests", ["DMA", "HostIO", "VirtioTestKit"]),
  tests(
    "HostileDriverTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "Storage", "VirtioServing",
      "VirtioBlock", "VirtioEntropy", "VirtioIOMMU", "VirtioPCI", "VirtioMMIO", "VirtioTestKit", "MachineKit", log,
    ]),
  tests(
    "IOMMUDriversTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "IOMMUs", "DriverDMA", "VirtioDrivers", "IOMMUDrivers",
      "Storage", "VirtioServing", "VirtioBlock", "VirtioPCI", "VirtioTestKit", "MachineKit",
    ]),
  tests("IOMMUsTests", ["DMA", "IOMMUInterface", "IOMMUs", "VirtioTestKit"]),
  tests("MachineTests", ["Virtio", "Storage", "DeviceCatalog", "Machine"]),
  tests("MemoryModelTests", ["MemoryModel"]),
  tests(
    "NVMeTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "PCI", "IOMMUs", "DriverDMA", "VirtioDrivers", "Storage", "NVMe",
      "VirtioTestKit", "MachineKit",
    ]),
  tests("PCITests", ["DMA", "IOMMUInterface", "PCI", "VirtioTestKit", "MachineKit"]),
  tests("QEMUTests", ["QTestKit"]),
  tests("RulesTests", []),
  tests(
    "VhostUserCheckTests",
    [
      "DMA", "HostIO", "Virtio", "Storage", "VirtioServing", "VirtioBlock", "VirtioEntropy", "SocketMessages",
      "Examination", "VhostUser", "DeviceCatalog", "VhostUserBackend", "VhostUserCheck", "VirtioTestKit", log,
    ]),
  tests(
    "VhostUserTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "DriverDMA", "VirtioDrivers", "Storage", "VirtioServing",
      "VirtioBlock", "VirtioEntropy", "SocketMessages", "VhostUser", "VhostUserBackend", "VhostUserFrontend",
      "VirtioTestKit", log,
    ]),
  tests(
    "VirtioDevicesTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "DriverDMA", "VirtioDrivers", "Storage", "VirtioBlock",
      "VirtioEntropy", "VirtioIOMMU", "VirtioTestKit",
    ]),
  tests(
    "VirtioDriversTests",
    [
      "DMA", "IOMMUInterface", "Virtio", "DriverDMA", "VirtioDrivers", "Storage", "VirtioBlock", "VirtioEntropy",
      "VirtioTestKit",
    ]),
  tests(
    "VfioUserTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "DriverDMA", "VirtioDrivers", "Storage", "VirtioServing",
      "VirtioBlock", "VirtioEntropy", "NVMe", "VirtioPCI", "SocketMessages", "VfioUser", "VirtioTestKit",
    ]),
  tests(
    "VfioUserCheckTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "Storage", "VirtioServing", "VirtioBlock", "VirtioEntropy",
      "NVMe", "VirtioPCI", "SocketMessages", "Examination", "VfioUser", "VfioUserCheck", "VirtioTestKit", log,
    ]),
  tests("VirtioServingTests", ["DMA", "HostIO", "IOMMUInterface", "Virtio", "VirtioServing", "VirtioTestKit", log]),
  tests("VirtioTests", ["DMA", "Virtio", "VirtioTestKit"]),
  tests(
    "VirtioTransportTests",
    [
      "DMA", "HostIO", "IOMMUInterface", "Virtio", "PCI", "IOMMUs", "DriverDMA", "VirtioDrivers", "Storage",
      "VirtioServing", "VirtioBlock", "VirtioEntropy", "VirtioIOMMU", "VirtioPCI", "VirtioMMIO", "VirtioTestKit",
      "MachineKit", log,
    ]),
]

// Fuzz targets need a sanitizer on everything below them, so they exist only when asked for: see Scripts/fuzz.
if ProcessInfo.processInfo.environment["SLUICE_FUZZ"] != nil {
  let fuzzed: [(String, [Target.Dependency])] = [
    ("IOMMURequests", ["IOMMUInterface", "Virtio", "VirtioIOMMU", "VirtioTestKit"]),
    ("PackedChain", ["VirtioTestKit"]),
    ("SplitChain", ["VirtioTestKit"]),
    ("VfioUserMessages", ["DMA", "HostIO", "Storage", "NVMe", "VfioUser", log]),
    ("VhostUserMessages", ["DMA", "HostIO", "VirtioEntropy", "VhostUserBackend", log]),
  ]
  for (name, imports) in fuzzed {
    targets.append(
      .executableTarget(
        name: "Fuzz\(name)", dependencies: imports, path: "Fuzz/\(name)",
        swiftSettings: [.swiftLanguageMode(.v6), .unsafeFlags(["-parse-as-library"])],
        linkerSettings: [.unsafeFlags(["-sanitize=fuzzer"])]))
  }
}

let libraries = [
  "DMA",
  "HostIO",
  "IOMMUInterface",
  "Virtio",
  "PCI",
  "IOMMUs",
  "DriverDMA",
  "VirtioDrivers",
  "IOMMUDrivers",
  "Storage",
  "VirtioServing",
  "VirtioBlock",
  "VirtioEntropy",
  "VirtioIOMMU",
  "NVMe",
  "DeviceCatalog",
  "VirtioPCI",
  "VirtioMMIO",
  "SocketMessages",
  "Examination",
  "VhostUser",
  "VfioUser",
  "VhostUserBackend",
  "VhostUserFrontend",
  "VhostUserCheck",
  "VfioUserCheck",
  "Machine",
]

let package = Package(
  name: "sluice",
  products: libraries.map { .library(name: $0, targets: [$0]) } + [.executable(name: "sluice", targets: ["sluice"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: targets
)

// With SLUICE_TESTS=ATests,BTests these tests alone are built, with what they need: see Scripts/threads.
if let named = ProcessInfo.processInfo.environment["SLUICE_TESTS"] {
  var needed = Set(named.split(separator: ",").map(String.init))
  var unseen = Array(needed)
  while let name = unseen.popLast() {
    for case .byNameItem(let other, _) in targets.first(where: { $0.name == name })?.dependencies ?? []
    where needed.insert(other).inserted {
      unseen.append(other)
    }
  }
  package.targets.removeAll { !needed.contains($0.name) }
  package.products.removeAll { !needed.contains($0.name) }
}
