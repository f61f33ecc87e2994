import ArgumentParser
import VirtioEntropy

/// `sluice serve rng`.
struct ServeEntropy: DeviceCommand {
  static let configuration = CommandConfiguration(
    commandName: "rng", abstract: "Serve a virtio-rng device: the host kernel's random numbers.",
    usage: "sluice serve rng --socket-path <path> [<options>]")
  static let capabilities = (type: "rng", features: [String]())

  @OptionGroup var socket: SocketOptions

  func run() throws {
    try serve("rng", socket) { _ in Served(device: EntropyDevice()) }
  }
}
