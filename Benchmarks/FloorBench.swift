import ArgumentParser
import DMA
import Foundation
import HostIO
import MinimalBackend
import QTestKit

/// The cost of a question (MISS) and of an invalidation behind QEMU's VT-d, compared with a minimal back-end.
struct FloorBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "floor",
    abstract:
      "Measures the cost of a translation and of an invalidation behind QEMU's VT-d, against a minimal back-end.",
    discussion: """
      A QEMU machine without a guest has two vhost-user disks behind VT-d, each with ATS. This process is their \
      driver, over QEMU's test protocol. A request reads half a KiB into each of its pages; --shapes DEPTHxPAGES makes \
      DEPTH requests of PAGES pages available at once. A cold turn maps the pages anew for every request and unmaps \
      them afterwards, each page by an invalidation of VT-d's cache and one of the device's. A warm turn leaves them \
      mapped, and invalidates a device that does not exist. A row is the extra time of the cold turn over the warm one \
      beside it, divided by the pages: the time that QEMU, the socket and the back-end take for one question, or one \
      invalidation. The minimal back-end ("floor") is written in C: one thread, which asks for all pages in one write \
      and answers only what it must. Both take turns within a round, and the first changes from round to round. A \
      turn's figure is the median of its requests. CPU is of all threads of a process. Figures are medians over the \
      rounds, ratios medians of each round's ratio, with the least and the most.
      """)

  @Option(help: "Path of `sluice`; by default the one beside this program.") var sluice: String?
  @Option(help: "Requests at once and pages of each, separated by commas: DEPTHxPAGES.") var shapes = "1x1,1x32,32x1"
  @Option(help: "Rounds.") var rounds = 15
  @Option(help: "Pages of a turn.") var pages = 400
  @Option(parsing: .unconditional, help: "More options for `sluice serve blk`, separated by blanks.")
  var sluiceOptions = ""
  @Option(help: "Seconds after which QEMU and the back-ends are killed.") var limit = 300.0
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  /// A question's or an invalidation's figures, round by round: the floor's and Sluice's.
  private struct Row {
    var floor: [FloorTime] = [], sluice: [FloorTime] = []

    func ratios(_ of: (FloorTime) -> Double) -> [Double] { zip(sluice, floor).map { of($0) / of($1) } }
  }

  mutating func run() throws {
    guard QEMU.path != nil else { throw BenchFailure(QEMU.absence) }
    let shapes = try shapes.split(separator: ",").map { word in
      let parts = word.split(separator: "x").compactMap { Int($0) }
      guard parts.count == 2, parts[0] > 0, parts[1] > 0, parts[0] * parts[1] <= FloorDisk.mostPages,
        parts[0] * (parts[1] + 2) <= 256
      else {
        throw ValidationError(
          "--shapes: \(word) is not DEPTHxPAGES with at most \(FloorDisk.mostPages) pages and 256 descriptors")
      }
      return FloorShape(depth: parts[0], pages: parts[1])
    }
    guard rounds > 0, pages > 0 else { throw ValidationError("--rounds and --pages must be above 0") }
    // Without it a sleep of two microseconds takes fifty.
    try? "1".write(toFile: "/proc/self/timerslack_ns", atomically: false, encoding: .utf8)
    let scratch = try Scratch()
    let image = try DiskImage(in: scratch)
    let command = try sluice ?? commandBeside()
    let more = sluiceOptions.split(separator: " ").map(String.init)
    let me = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    let least = try DiskServer(me, in: scratch, lifetime: limit) {
      [LeastBackendCommand.configuration.commandName!, $0]
    }
    let ours = try DiskServer(command, in: scratch, lifetime: limit) {
      ["serve", "blk", "--socket-path", $0, "--blk-file", image.path, "--num-queues", "1"] + more
    }
    let machine = try DiskMachine(
      [least, ours].map { server in
        var options = DiskOptions(.sluice)
        options.running = (server, image)
        return options
      }, lifetime: limit)
    let guest = try mapped(machine.qemu)
    let floor = try FloorDisk("the floor", machine, machine.disks[0], guest: guest)
    let disk = try FloorDisk("Sluice", machine, machine.disks[1], guest: guest)
    let before = try explained(command, ours.socket)
    var table = Table(
      [
        "of one", "depth", "pages", "floor µs", "Sluice µs", "ratio", "least", "most", "QEMU's cpu µs", "with Sluice",
        "floor's cpu µs", "Sluice's", "ratio",
      ], json: json)
    for shape in shapes {
      try add(shape, floor, disk, to: &table)
    }
    table.finish()
    if !json {
      let after = try explained(command, ours.socket)
      print(
        """
        Sluice asked \(after.questions - before.questions) questions and handled \
        \(after.invalidations - before.invalidations) invalidations for \(disk.coldPages) cold pages.
        """)
      machine.qemu.stop()
      print(
        "The floor \(least.program.ended(within: 5) ? least.program.said.trimmingCharacters(in: .whitespacesAndNewlines) : "did not end"), for \(floor.coldPages)."
      )
    }
  }

  private func add(_ shape: FloorShape, _ floor: FloorDisk, _ disk: FloorDisk, to table: inout Table) throws {
    var questions = Row(), invalidations = Row()
    let repeats = max(1, pages / shape.all)
    try floor.prepare(shape)
    try disk.prepare(shape)
    // The round before the first is for the caches.
    for round in 0...rounds {
      for one in round % 2 == 0 ? [floor, disk] : [disk, floor] {
        let warm = try one.warm(repeats), cold = try one.cold(repeats)
        guard round > 0 else { continue }
        let question = (cold.asking - warm.asking) / shape.all,
          invalidation = (cold.forgetting - warm.forgetting) / shape.all
        if one === floor {
          questions.floor.append(question)
          invalidations.floor.append(invalidation)
        } else {
          questions.sluice.append(question)
          invalidations.sluice.append(invalidation)
        }
      }
    }
    for (what, row) in [("question", questions), ("invalidation", invalidations)] {
      let ratios = row.ratios(\.wall), cpus = row.ratios { $0.backend }
      func of(_ times: [FloorTime], _ part: (FloorTime) -> Double) -> Double { median(times.map(part)) / 1000 }
      let figures = [
        ("floor_us", of(row.floor, \.wall)), ("sluice_us", of(row.sluice, \.wall)), ("ratio", median(ratios)),
        ("ratio_least", ratios.min() ?? 0),
        ("ratio_most", ratios.max() ?? 0), ("floor_qemu_cpu_us", of(row.floor, \.qemu)),
        ("sluice_qemu_cpu_us", of(row.sluice, \.qemu)),
        ("floor_cpu_us", of(row.floor, \.backend)), ("sluice_cpu_us", of(row.sluice, \.backend)),
        ("cpu_ratio", median(cpus)),
      ]
      table.add(
        [what, "\(shape.depth)", "\(shape.pages)"]
          + figures.map { $0.0.hasPrefix("ratio") || $0.0 == "cpu_ratio" ? $0.1.text(2) : $0.1.text() },
        json: [("of", .word(what)), ("depth", .integer(shape.depth)), ("pages", .integer(shape.pages))]
          + figures.map { ($0.0, .number($0.1)) })
    }
  }

  private func mapped(_ qemu: QEMU) throws -> HostMapping {
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: qemu.memoryPath()))
    defer { try? file.close() }
    return try HostMapping(descriptor: file.fileDescriptor, offset: 0, byteCount: 64 << 20)
  }

  /// What Sluice counted so far.
  private func explained(_ command: String, _ socket: String) throws -> (questions: Int, invalidations: Int) {
    let process = Process(), output = Pipe()
    process.executableURL = URL(fileURLWithPath: command)
    process.arguments = ["explain", "--json", socket]
    process.standardOutput = output
    try process.run()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard let facts = try JSONSerialization.jsonObject(with: data) as? [String: Any],
      let questions = facts["questions"] as? Int,
      let invalidations = facts["invalidations"] as? Int
    else { throw BenchFailure("sluice explain does not report translations") }
    return (questions, invalidations)
  }
}

/// The floor's own process.
struct LeastBackendCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "least-backend", abstract: "Serves the minimal disk that `floor` compares with.", shouldDisplay: false)

  @Argument(help: "The socket's path.") var socket: String

  mutating func run() throws {
    let listener = try UnixListener(path: socket)
    guard let connection = try listener.accept(timeout: .seconds(60)) else { throw BenchFailure("no peer connected") }
    let status = minimal_backend_serve(connection.rawValue)
    guard status == 0 else { throw BenchFailure("the minimal back-end ended: errno \(-status)") }
  }
}
