import ArgumentParser
import HostIO
import VhostUser

/// `sluice explain`: what a running back-end does, and why.
struct Explain: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Ask a running back-end whether its device goes through the IOMMU, and what it can reach.",
    discussion: """
      The back-end answers on the socket it serves on, beside its front-end: whether VIRTIO_F_ACCESS_PLATFORM was offered and \
      accepted, which address path is in force and why, how much of the guest's memory the device can reach now, at most so far \
      and of all, what its translation cache did, and what each queue did. When no front-end is connected the figures are those \
      of the last one. A back-end that was started with a connected --fd has no socket to ask.
      """)

  @Argument(help: ArgumentHelp("The back-end's socket.", valueName: "socket"), completion: .file())
  var path: String

  @Flag(help: "Answer in JSON: one object, one line.")
  var json = false

  func run() throws {
    guard !path.isEmpty else {
      throw Failure.usage("no socket is named; give the path that `sluice serve` got as --socket-path")
    }
    do {
      StandardStream.output.print(try ExplainRequest.ask(path, as: json ? .json : .words), terminator: "")
    } catch {
      switch error {
      case .unreachable(let host) where host.errno == .noSuchFileOrDirectory:
        throw Failure.host("there is no socket \(path); is the back-end running?")
      case .unreachable(let host) where host.errno == .connectionRefused:
        throw Failure.host("nobody listens on \(path); its back-end has ended")
      case .unreachable(let host) where host.errno == .notSocket:
        throw Failure.host("\(path) is not a socket; give the path that `sluice serve` got as --socket-path")
      case .unreachable(let host) where host.errno == .fileNameTooLong:
        throw Failure.usage(
          "\(path) is longer than a socket's path may be (107 bytes); go to its directory and give the rest")
      case .unreachable(let host) where host.errno == .permissionDenied || host.errno == .notPermitted:
        throw Failure.host(
          "\(path) may not be asked by this user (\(host.reason)); ask as the one its back-end runs as")
      case .unreachable(let host): throw Failure.host("\(path) cannot be asked: \(host.reason)")
      case .silent:
        throw Failure.host("who listens on \(path) does not answer; it is no back-end of sluice, or an older one")
      }
    }
  }
}
