import ArgumentParser
import HostIO
import VirtioServing

/// `sluice explain`: the state of a running back-end, with reasons.
struct Explain: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Ask a running server whether its device goes through the IOMMU, and what it can reach.",
    discussion: """
      The server answers on its own socket, beside its front-end or client: whether VIRTIO_F_ACCESS_PLATFORM was \
      offered and accepted; which address path is in force, and why; how much of the guest's memory the device can \
      reach now, and could at most so far; over vhost-user the counters of the translation cache, over vfio-user the \
      client's mappings, the last accesses that were refused, and interrupts; and what each queue did. Without a \
      front-end or client, the figures are those of the last one. A server that was started with a connected --fd has \
      no socket to ask.
      """)

  @Argument(help: ArgumentHelp("The server's socket.", valueName: "socket"), completion: .file())
  var path: String

  @Flag(help: "Print JSON: one object on one line.")
  var json = false

  func run() throws {
    guard !path.isEmpty else {
      throw Failure.usage("no socket; give the --socket-path or --vfio-user of `sluice serve`")
    }
    do {
      StandardStream.output.print(try ExplainRequest.ask(path, as: json ? .json : .words), terminator: "")
    } catch {
      switch error {
      case .unreachable(let host) where host.errno == .noSuchFileOrDirectory:
        throw Failure.host("there is no socket \(path); is the server running?")
      case .unreachable(let host) where host.errno == .connectionRefused:
        throw Failure.host("\(path) has no listener; its server has ended")
      case .unreachable(let host) where host.errno == .notSocket:
        throw Failure.host("\(path) is not a socket; give the --socket-path or --vfio-user of `sluice serve`")
      case .unreachable(let host) where host.errno == .fileNameTooLong:
        throw Failure.usage(
          "\(path) is too long for a socket (107 bytes); change to its directory and give a relative path")
      case .unreachable(let host) where host.errno == .permissionDenied || host.errno == .notPermitted:
        throw Failure.host(
          "this user may not connect to \(path) (\(host.reason)); use the server's user")
      case .unreachable(let host): throw Failure.host("cannot connect to \(path): \(host.reason)")
      case .silent:
        throw Failure.host(
          "the listener on \(path) does not answer; it is no server of Sluice, or an older one")
      }
    }
  }
}
