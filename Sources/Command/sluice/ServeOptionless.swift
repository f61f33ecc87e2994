import ArgumentParser
import Virtio

/// `sluice serve` for a device that takes no options of its own.
struct ServeOptionless<Device: OptionlessDevice>: DeviceCommand {
  private static var name: String { Device.probe.name }
  static var configuration: CommandConfiguration {
    CommandConfiguration(
      commandName: name, abstract: "Serve a virtio-\(name) device over vhost-user or vfio-user: \(Device.summary).",
      usage: "sluice serve \(name) (--socket-path <path>|--vfio-user <path>) [<options>]")
  }
  static var capabilities: (type: String, features: [String]) { (name, []) }

  @OptionGroup var socket: SocketOptions

  func run() throws {
    try serve(Self.name, socket) { _ in Served(device: Device()) }
  }
}
