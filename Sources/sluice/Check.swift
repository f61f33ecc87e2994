import ArgumentParser
import Glibc
import HostIO
import VhostUserCheck

/// The words of `--type`.
enum DeviceArgument: String, CaseIterable, ExpressibleByArgument {
  case blk, rng, net, fs, vsock

  var device: CheckedDevice {
    switch self {
    case .blk: .blk
    case .rng: .rng
    case .net: .net
    case .fs: .fs
    case .vsock: .vsock
    }
  }
}

/// `sluice check`: whether a back-end, ours or another, keeps the rules.
struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check whether a vhost-user back-end, of any make, keeps the rules.",
    discussion: """
      Connects as a front-end and driver would, again and again, and does right and wrong things: negotiation, messages, memory, \
      rings, translations, migration, garbage. Nothing is written to a disk. A line a check says its verdict, the rule or message \
      that it is about, its name, and what was seen:

      kept: it did what the rule says. broken: it did something else, and lives. wedged: an answer or a request did \
      not come in the time. crashed: its process died, or nothing listens any more. not offered: it does not have what \
      the rule is about. not checked: the check could not be made, for a reason on this side, which the line names.

      Connect nothing else to the back-end meanwhile. One that serves a single connection, or that a check may kill, is best \
      started by this command, as often as it takes: give its command line behind `--`.

      sluice check /tmp/disk.sock --type blk

      sluice check /tmp/fs.sock --type fs -- virtiofsd --socket-path=/tmp/fs.sock --shared-dir=/srv

      Exit status: 0 nothing broken, 1 something broken, 2 wrong usage, or no back-end to check.
      """)

  @Argument(help: ArgumentHelp("The socket the back-end listens on.", valueName: "socket"))
  var path: String?

  @Option(help: ArgumentHelp("What the device is; it cannot be asked.", valueName: "blk|rng|net|fs|vsock"))
  var type: DeviceArgument?

  @Flag(help: "Answer in JSON: an object and a line a check, then one for the summary. Keys are in snake_case.")
  var json = false

  @Option(
    help: ArgumentHelp(
      "Make the check of this name only, as --list has it; can be given several times.", valueName: "name"))
  var only: [String] = []

  @Option(
    help: ArgumentHelp(
      "How long one answer, or one request, may take: 0.1 to 600 seconds. More on a busy machine.", valueName: "seconds"
    ))
  var timeout = 3.0

  @Flag(
    help:
      "Name the checks (those of --only, or all), each with its rule and a sentence, and exit; with --json as objects.")
  var list = false

  @Argument(
    parsing: .postTerminator,
    help: ArgumentHelp("How to start the back-end, anew whenever it has ended.", valueName: "command"))
  var command: [String] = []

  func run() throws {
    if list {
      do throws(CheckError) {
        let lines =
          try json
          ? CheckRun.listJSON(only: only) : CheckRun.list(only: only).map { "\($0.rule)\t\($0.name)\t\($0.sentence)" }
        for line in lines { StandardStream.output.print(line) }
      } catch {
        throw Self.failure(error, "", .blk, nil)
      }
      return
    }
    guard let path else { throw Failure.usage("no back-end to check; give the path of its socket") }
    guard let type else {
      throw Failure.usage("what kind of device it is cannot be asked; give --type blk, rng, net, fs or vsock")
    }
    guard timeout >= 0.1, timeout <= 600 else { throw Failure.usage("--timeout is 0.1 to 600 seconds") }
    let process = command.isEmpty ? nil : BackendCommand(command, socket: path)
    defer { process?.end() }
    let run: CheckRun
    let summary: CheckSummary
    do throws(CheckError) {
      run = try CheckRun(process ?? SocketSubject(path: path), type.device, patience: .seconds(timeout), only: only)
      summary = try run.run(warn: {
        StandardStream.output.print(json ? CheckRun.json(warning: $0) : "warning: \($0)")
      }) { StandardStream.output.print(json ? $0.json : $0.line) }
    } catch {
      throw Self.failure(error, path, type, process)
    }
    let offer = run.offer
    StandardStream.output.print(
      json
        ? summary.json(device: type.device, features: offer.features, protocolFeatures: offer.protocolFeatures)
        : summary.line)
    if !summary.isClean { throw Failure(sentence: "not every rule is kept", status: 1) }
  }

  private static func failure(
    _ error: CheckError, _ path: String, _ type: DeviceArgument, _ process: BackendCommand?
  ) -> Failure {
    switch error {
    case .noSuchCheck(let name): .usage("there is no check \(name); --list names them")
    case .servesOneConnection:
      .usage(
        "the back-end ended with its first connection; let this command start it: sluice check \(path) --type \(type) -- COMMAND"
      )
    case .unreachable(let reason): .usage("\(path) cannot be checked: \(reason)\(process?.lastWords ?? "")")
    }
  }
}
