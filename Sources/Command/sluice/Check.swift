import ArgumentParser
import DeviceCatalog
import Examination
import Glibc
import HostIO
import VfioUserCheck
import VhostUserCheck
import Virtio

/// The values of `--type`: the kinds of the catalogue that can be checked.
struct DeviceArgument: ExpressibleByArgument {
  let probe: DeviceProbe

  init?(argument: String) {
    guard let probe = DeviceKind(rawValue: argument)?.probe else { return nil }
    self.probe = probe
  }

  static var allValueStrings: [String] { DeviceKind.checked.map(\.rawValue) }
  static var allValueDescriptions: [String: String] { [:] }
  static var defaultCompletionKind: CompletionKind { .list(allValueStrings) }
}

/// `sluice check`: whether a back-end, or a vfio-user server, ours or another, keeps the rules.
struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract:
      """
      Test whether a vhost-user back-end or a vfio-user server, Sluice or another, follows the specifications of its \
      protocol and device.
      """,
    discussion: """
      Connects as a front-end and driver, many times, and sends valid and invalid input: negotiation, messages, memory, \
      rings, translations, migration, random input. It writes nothing to a disk. Each check prints one line: the \
      verdict, the rule or message, the name of the check, and what was observed.

      With --vfio-user it is a client of a vfio-user server: every command right and wrong, mappings, interrupts, reset, \
      several clients, for any PCI device; and for a device that it has a driver for (NVMe, virtio-blk), mappings and resets under \
      requests at work. The device is reset and its registers are written.

      Verdicts: kept: the back-end did what the rule says. broken: it did something else, and still runs. wedged: an \
      answer or a request did not come in time. crashed: its process died, or its socket has no listener any more. not \
      offered: it lacks the feature that the rule is about. not checked: this command could not make the check; the \
      line says why.

      Connect nothing else to the back-end meanwhile. If it serves a single connection, or may crash, let this command \
      start it, as often as needed: give its command line after `--`.

      sluice check /tmp/disk.sock --type blk

      sluice check /tmp/fs.sock --type fs -- virtiofsd --socket-path=/tmp/fs.sock --shared-dir=/srv

      sluice check --vfio-user /tmp/nvme.sock -- sluice serve nvme --blk-file disk.img --vfio-user /tmp/nvme.sock

      Exit status: 0 nothing broken, 1 something broken, 2 wrong usage, or no back-end to check.
      """)

  @Argument(help: ArgumentHelp("The back-end's socket.", valueName: "socket"), completion: .file())
  var path: String?

  @Option(
    name: .customLong("vfio-user"),
    help: ArgumentHelp(
      "Test the vfio-user server that listens at this path; with --list, list its checks.", valueName: "path"),
    completion: .file())
  var vfioUser: String?

  @Option(
    help: ArgumentHelp(
      "The kind of device; the protocol cannot tell it.",
      valueName: DeviceArgument.allValueStrings.joined(separator: "|")))
  var type: DeviceArgument?

  @Flag(help: "Print JSON: an object for each check, one on each line, then the summary. Keys are in snake_case.")
  var json = false

  @Option(
    help: ArgumentHelp(
      "Run only the check of this name (see --list); can be repeated.", valueName: "name"))
  var only: [String] = []

  @Option(
    help: ArgumentHelp(
      "Time limit for one answer or request: 0.1 to 600 seconds. Use more on a busy machine.", valueName: "seconds"
    ))
  var timeout = 3.0

  @Flag(
    help:
      "List the checks (all, or those of --only), each with its rule and a sentence, and exit; with --json as objects.")
  var list = false

  @Argument(
    parsing: .postTerminator,
    help: ArgumentHelp("The command that starts the back-end, each time it has ended.", valueName: "command"))
  var command: [String] = []

  func run() throws {
    if list {
      do throws(CheckError) { for line in try listed() { StandardStream.output.print(line) } } catch {
        throw Self.failure(error, .vhostUser, "", "", nil)
      }
      return
    }
    guard timeout >= 0.1, timeout <= 600 else { throw Failure.usage("--timeout must be 0.1 to 600 seconds") }
    let isClean = try vfioUser.map(checkServer) ?? checkBackend()
    if !isClean { throw Failure(sentence: "not every rule is kept", status: 1) }
  }

  private func listed() throws(CheckError) -> [String] {
    if json { return try vfioUser == nil ? CheckRun.listJSON(only: only) : VfioCheckRun.listJSON(only: only) }
    let entries = try vfioUser == nil ? CheckRun.list(only: only) : VfioCheckRun.list(only: only)
    return entries.map { "\($0.rule)\t\($0.name)\t\($0.sentence)" }
  }

  /// Checks the vfio-user server at `path`. Whether nothing was broken.
  private func checkServer(_ path: String) throws -> Bool {
    guard self.path == nil else { throw Failure.usage("give --vfio-user or a back-end's socket, not both") }
    guard type == nil else {
      throw Failure.usage("--type is for vhost-user: a vfio-user server says what its device is")
    }
    let process = command.isEmpty ? nil : BackendCommand(command, socket: path)
    defer { process?.end() }
    do throws(CheckError) {
      let run = try VfioCheckRun(process ?? SocketSubject(path: path), patience: .seconds(timeout), only: only)
      let summary = try run.run { StandardStream.output.print(json ? $0.json : $0.line) }
      StandardStream.output.print(json ? run.json(summary) : summary.line)
      return summary.isClean
    } catch {
      throw Self.failure(error, .vfioUser, path, "--vfio-user \(path)", process)
    }
  }

  /// Checks a vhost-user back-end. Whether nothing was broken.
  private func checkBackend() throws -> Bool {
    guard let path else { throw Failure.usage("no back-end to check; give the path of its socket") }
    guard let type else {
      let kinds = DeviceArgument.allValueStrings
      throw Failure.usage(
        "the kind of device is not known; give --type \(kinds.dropLast().joined(separator: ", ")) or \(kinds.last ?? "")"
      )
    }
    let process = command.isEmpty ? nil : BackendCommand(command, socket: path)
    defer { process?.end() }
    let run: CheckRun
    let summary: CheckSummary
    do throws(CheckError) {
      run = try CheckRun(
        process ?? SocketSubject(path: path), type.probe, others: DeviceKind.checked.compactMap(\.probe),
        patience: .seconds(timeout), only: only)
      summary = try run.run(warn: {
        StandardStream.output.print(json ? CheckWarning.json($0) : "warning: \($0)")
      }) { StandardStream.output.print(json ? $0.json : $0.line) }
    } catch {
      throw Self.failure(error, .vhostUser, path, "\(path) --type \(type.probe.name)", process)
    }
    let offer = run.offer
    StandardStream.output.print(
      json
        ? summary.json(device: type.probe, features: offer.features, protocolFeatures: offer.protocolFeatures)
        : summary.line)
    return summary.isClean
  }

  /// - Parameter subject: what names the server on the command line.
  private static func failure(
    _ error: CheckError, _ spoken: ServedProtocol, _ path: String, _ subject: String, _ process: BackendCommand?
  ) -> Failure {
    switch error {
    case .noSuchCheck(let name): .usage("there is no check \(name); --list names them")
    case .servesOneConnection:
      .usage(
        "the back-end ended after its first connection; let this command start it: sluice check \(subject) -- COMMAND")
    case .unreachable(let reason):
      .usage(
        process?.startFailure
          ?? "\(path) cannot be checked: \(reason)\(process?.lastWords ?? "")\(CheckHint.words(path, spoken: spoken))")
    }
  }
}
