import ArgumentParser
import HostIO

/// The command. Exit status: 0 done, 1 failed (this host, or what was tested), 2 wrong usage.
@main
struct Sluice: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice",
    abstract:
      "Serve virtio and NVMe devices to virtual machines over vhost-user or vfio-user, confined by the guest's IOMMU.",
    discussion: """
      Each device is a process of its own; a virtual machine monitor connects to its socket: the front-end of \
      vhost-user, or the client of vfio-user. Behind an IOMMU a device can reach only the pages that the guest mapped \
      for it: over vhost-user with VIRTIO_F_ACCESS_PLATFORM negotiated, over vfio-user always.

      Exit status: 0 success, 1 failure, 2 wrong usage. After an error, one line on standard error says what to do.
      """,
    version: "0.1.0",
    subcommands: [Serve.self, Explain.self, Check.self, MatrixCommand.self, MachineCommand.self])

  static func main() {
    StandardStream.fillClosed()
    var words = CommandLine.arguments
    let program = words.isEmpty ? "sluice" : words.removeFirst()
    // A manager that starts back-ends by name alone finds them under these (links to this program).
    let name = program.split(separator: "/").last ?? ""
    let linked = Serve.devices.first { ["sluice-\($0._commandName)", "vhost-user-\($0._commandName)"].contains(name) }
    if let linked { words = [Serve._commandName, linked._commandName] + words }
    do {
      // The conventions for back-end programs: all other words are ignored, valid or not.
      if words.contains("--print-capabilities"),
        let device = Serve.devices.first(where: { words.starts(with: [Serve._commandName, $0._commandName]) })
      {
        return device.printCapabilities()
      }
      try? SignalFD.ignoreBrokenPipes()
      try? OpenFileLimit.raise()
      var command = try Sluice.parseAsRoot(words)
      try command.run()
    } catch let failure as Failure {
      failure.end()
    } catch {
      let status = Sluice.exitCode(for: error)
      // Help and version texts are results; everything else is wrong usage.
      if status == .success { Sluice.exit(withError: error) }
      Failure.usage(ParserMessage(error, of: words).sentence).end()
    }
  }
}
