import ArgumentParser
import DeviceCatalog
import Examination
import Glibc
import HostIO
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

/// `sluice check`: whether a back-end, ours or another, keeps the rules.
struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract:
      "Test whether a vhost-user back-end, Sluice or another, follows the vhost-user and virtio specifications.",
    discussion: """
      Connects as a front-end and driver, many times, and sends valid and invalid input: negotiation, messages, memory, \
      rings, translations, migration, random input. It writes nothing to a disk. Each check prints one line: the \
      verdict, the rule or message, the name of the check, and what was observed.

      Verdicts: kept: the back-end did what the rule says. broken: it did something else, and still runs. wedged: an \
      answer or a request did not come in time. crashed: its process died, or its socket has no listener any more. not \
      offered: it lacks the feature that the rule is about. not checked: this command could not make the check; the \
      line says why.

      Connect nothing else to the back-end meanwhile. If it serves a single connection, or may crash, let this command \
      start it, as often as needed: give its command line after `--`.

      sluice check /tmp/disk.sock --type blk

      sluice check /tmp/fs.sock --type fs -- virtiofsd --socket-path=/tmp/fs.sock --shared-dir=/srv

      Exit status: 0 nothing broken, 1 something broken, 2 wrong usage, or no back-end to check.
      """)

  @Argument(help: ArgumentHelp("The back-end's socket.", valueName: "socket"), completion: .file())
  var path: String?

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
      do throws(CheckError) {
        let lines =
          try json
          ? CheckRun.listJSON(only: only) : CheckRun.list(only: only).map { "\($0.rule)\t\($0.name)\t\($0.sentence)" }
        for line in lines { StandardStream.output.print(line) }
      } catch {
        throw Self.failure(error, "", nil, nil)
      }
      return
    }
    guard let path else { throw Failure.usage("no back-end to check; give the path of its socket") }
    guard let type else {
      let kinds = DeviceArgument.allValueStrings
      throw Failure.usage(
        "the kind of device is not known; give --type \(kinds.dropLast().joined(separator: ", ")) or \(kinds.last ?? "")"
      )
    }
    guard timeout >= 0.1, timeout <= 600 else { throw Failure.usage("--timeout must be 0.1 to 600 seconds") }
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
      throw Self.failure(error, path, type, process)
    }
    let offer = run.offer
    StandardStream.output.print(
      json
        ? summary.json(device: type.probe, features: offer.features, protocolFeatures: offer.protocolFeatures)
        : summary.line)
    if !summary.isClean { throw Failure(sentence: "not every rule is kept", status: 1) }
  }

  private static func failure(
    _ error: CheckError, _ path: String, _ type: DeviceArgument?, _ process: BackendCommand?
  ) -> Failure {
    switch error {
    case .noSuchCheck(let name): .usage("there is no check \(name); --list names them")
    case .servesOneConnection:
      .usage(
        "the back-end ended after its first connection; let this command start it: sluice check \(path) --type \(type?.probe.name ?? "TYPE") -- COMMAND"
      )
    case .unreachable(let reason):
      .usage(process?.startFailure ?? "\(path) cannot be checked: \(reason)\(process?.lastWords ?? "")")
    }
  }
}
