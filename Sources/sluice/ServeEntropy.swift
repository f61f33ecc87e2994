import ArgumentParser
import VirtioDevices

/// `sluice serve rng`.
struct ServeEntropy: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rng", abstract: "Serve a virtio-rng device: the host kernel's random numbers.")

  @OptionGroup var socket: SocketOptions

  func run() throws {
    if socket.printCapabilities { return printCapabilities(type: "rng", features: []) }
    try serve("rng", socket) { _ in EntropyDevice() }
  }
}
