// swift-tools-version: 6.3

// Programs of a user's package that serve devices with Sluice's libraries. CI builds and starts them.

import PackageDescription

let package = Package(
  name: "examples",
  dependencies: [
    .package(name: "sluice", path: ".."),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: [
    .executableTarget(
      name: "serve-a-disk",
      dependencies: [
        .product(name: "VhostUserBackend", package: "sluice"), .product(name: "VirtioBlock", package: "sluice"),
        .product(name: "Logging", package: "swift-log"),
      ], path: "ServeADisk"),
    .executableTarget(
      name: "write-a-device",
      dependencies: [
        .product(name: "VhostUserBackend", package: "sluice"), .product(name: "Virtio", package: "sluice"),
        .product(name: "Logging", package: "swift-log"),
      ], path: "WriteADevice"),
  ]
)
