import ArgumentParser
import Foundation
import FrontendKit
import VhostUserFrontend

/// The disk, against qemu-storage-daemon's.
struct BlockBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract:
      "Measures Sluice's disk and qemu-storage-daemon's in turn: request rate, latency, CPU time of the back-end.",
    discussion: """
      Both serve an image on tmpfs to the same front-end, which keeps a number of requests under way on each queue and \
      sleeps when none has completed. Each row is measured in rounds, in which the back-ends take turns; figures are \
      medians over the rounds, ratios medians of each round's ratio. cpu_ns is the CPU time of all threads of the \
      back-end's process, divided by the requests.
      """)

  @Option(help: "Path of `sluice`; by default the one beside this program.") var sluice: String?
  @Option(help: "Path of the peer.") var peer = "/usr/bin/qemu-storage-daemon"
  @Option(help: "Operations, separated by commas: read, write.") var operations = "read,write"
  @Option(help: "Patterns, separated by commas: random, sequential.") var patterns = "random,sequential"
  @Option(help: "Block sizes in bytes, separated by commas.") var blocks = "4096,65536"
  @Option(help: "Requests under way on each queue, separated by commas.") var depths = "1,32,128"
  @Option(help: "Numbers of queues, separated by commas.") var queues = "1,2"
  @Option(help: "Rounds.") var rounds = 5
  @Option(help: "Seconds of one back-end's turn.") var seconds = 0.3
  @Option(help: "MiB of each image.") var imageSize = 256
  @Option(help: "Where images and sockets are.") var directory = "/dev/shm"
  @Option(parsing: .unconditional, help: "More options for `sluice serve blk`, separated by blanks.")
  var sluiceOptions = ""
  @Flag(help: "Compare Sluice behind a translation (ACCESS_PLATFORM, static mappings) with Sluice without.")
  var translated = false
  @Option(help: "With --translated: bytes of one UPDATE (QEMU: 4096); 0 for whole mappings.") var granule: UInt64 = 0
  @Flag(help: "The front-end polls instead of asking for calls.") var poll = false
  @Flag(help: "Use descriptors in the ring instead of indirect tables.") var directDescriptors = false
  @Flag(help: "Use a packed ring; only with --translated, because the peer has none.") var packed = false
  @Flag(
    help:
      "With --translated: count the back-end's instructions for a request, under valgrind (callgrind), instead of time."
  )
  var instructions = false
  @Flag(
    help: "Run the front-end on processor 0 and the back-ends on processor 1, so that every wake-up crosses processors."
  )
  var apart = false
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  mutating func run() throws {
    let depths = try numbers(depths, "--depths")
    let queues = try numbers(queues, "--queues")
    let blocks = try numbers(blocks, "--blocks")
    let operations = try operations.split(separator: ",").map { name in
      switch name {
      case "read": DiskOperation.read
      case "write": DiskOperation.write
      default: throw ValidationError("there is no operation \(name)")
      }
    }
    let patterns = try patterns.split(separator: ",").map { name in
      guard name == "random" || name == "sequential" else { throw ValidationError("there is no pattern \(name)") }
      return name == "random"
    }
    let scratch = URL(fileURLWithPath: directory).appendingPathComponent(
      "sluice-bench-\(ProcessInfo.processInfo.processIdentifier)")
    try FileManager.default.createDirectory(at: scratch, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: scratch) }
    if instructions {
      guard translated else {
        throw ValidationError("--instructions compares with and without a translation: --translated is missing")
      }
      return try countInstructions(scratch, operations, blocks, depths)
    }
    var table = Table(
      [
        "op", "pattern", "block", "depth", "queues", "iops", translated ? "physical" : "peer iops", "ratio", "cpu ns",
        translated ? "physical" : "peer cpu ns", "ratio", "p50 µs", "peer", "p99 µs", "peer",
      ], json: json)
    for count in queues {
      let (ours, theirs) = try start(scratch, count, depths.max() ?? 1, blocks.max() ?? 4096)
      for operation in operations {
        for isRandom in patterns {
          for block in blocks {
            for depth in depths {
              let job = BlockJob(
                operation: operation, isRandom: isRandom, blockBytes: block, depth: depth, queues: count)
              add(job, try measure(job, ours, theirs), &table)
            }
          }
        }
      }
      if translated, !json {
        let counts = ours.counts
        print("\(count) queues: \(counts.misses) misses, \(counts.updates) updates")
      }
    }
    table.finish()
  }

  private func start(_ scratch: URL, _ queues: Int, _ depth: Int, _ block: Int) throws -> (BlockTarget, BlockTarget) {
    let bytes = UInt64(imageSize) << 20
    let images = ["sluice.img", "peer.img"].map { scratch.appendingPathComponent($0).path }
    try BlockTarget.makeImages(images, bytes: bytes)
    var setup = setup(queues, depth, block)
    let program = try elsewhere(try sluice ?? commandBeside(), scratch)
    func serve(_ name: String, _ image: String) throws -> BackendProcess {
      try self.serve(program, name, image, scratch, queues)
    }
    let ours = try BlockTarget("sluice", try serve("sluice", images[0]), setup)
    try ours.check()
    let theirs: BlockTarget
    if translated {
      setup.isTranslated = false
      theirs = try BlockTarget("sluice, physical", try serve("physical", images[1]), setup)
    } else {
      let daemon = try BackendProcess.storageDaemon(
        image: images[1], directory: scratch, queues: queues, program: try elsewhere(peer, scratch), name: "peer")
      guard let daemon else { throw ValidationError("there is no program \(peer)") }
      theirs = try BlockTarget("qemu-storage-daemon", daemon, setup)
    }
    try theirs.check()
    return (ours, theirs)
  }

  /// With `--apart`: keeps this process on processor 0, and makes a command that starts the program on processor 1.
  private func elsewhere(_ program: String, _ scratch: URL) throws -> String {
    guard apart else { return program }
    let me = try Process.run(
      URL(filePath: "/usr/bin/taskset"),
      arguments: ["-a", "-c", "-p", "0", "\(ProcessInfo.processInfo.processIdentifier)"])
    me.waitUntilExit()
    guard me.terminationStatus == 0 else { throw ValidationError("--apart needs two processors, and taskset") }
    let command = scratch.appendingPathComponent("apart-\(URL(filePath: program).lastPathComponent)").path
    try "#!/bin/sh\nexec taskset -c 1 \"\(program)\" \"$@\"\n".write(toFile: command, atomically: true, encoding: .utf8)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: command)
    return command
  }

  func setup(_ queues: Int, _ depth: Int, _ block: Int) -> BlockSetup {
    BlockSetup(
      queues: queues, slots: depth, slotBytes: block, queueSize: directDescriptors ? 1024 : 256,
      isIndirect: !directDescriptors,
      isTranslated: translated, granule: granule == 0 ? nil : granule, polls: poll, packed: packed,
      imageBytes: UInt64(imageSize) << 20)
  }

  func serve(_ program: String, _ name: String, _ image: String, _ scratch: URL, _ queues: Int) throws -> BackendProcess
  {
    let started = try BackendProcess.sluice(
      image: image, directory: scratch, queues: queues, program: program,
      extra: sluiceOptions.split(separator: " ").map(String.init), name: name)
    guard let started else { throw ValidationError("there is no program \(program)") }
    return started
  }

  private struct Figures {
    var rate: Double
    var processor: Double
    var p50: Double
    var p99: Double
  }

  private struct Row {
    var ours: Figures
    var theirs: Figures
    var rateRatio: Double
    var processorRatio: Double
  }

  private func measure(_ job: BlockJob, _ ours: BlockTarget, _ theirs: BlockTarget) throws -> Row {
    var samples: (ours: [BlockSample], theirs: [BlockSample]) = ([], [])
    _ = try ours.run(job, seconds: seconds / 5)
    _ = try theirs.run(job, seconds: seconds / 5)
    for round in 0..<rounds {
      // The first one changes from round to round, too.
      if round % 2 == 0 { samples.ours.append(try ours.run(job, seconds: seconds)) }
      samples.theirs.append(try theirs.run(job, seconds: seconds))
      if round % 2 == 1 { samples.ours.append(try ours.run(job, seconds: seconds)) }
    }
    func figures(_ samples: [BlockSample]) -> Figures {
      let sorted = samples.map { $0.latencies.sorted() }
      return Figures(
        rate: median(samples.map(\.rate)), processor: median(samples.map(\.processorTime)),
        p50: median(sorted.map { percentile($0, 0.5) }) / 1000, p99: median(sorted.map { percentile($0, 0.99) }) / 1000)
    }
    return Row(
      ours: figures(samples.ours), theirs: figures(samples.theirs),
      rateRatio: median(zip(samples.ours, samples.theirs).map { $0.rate / $1.rate }),
      processorRatio: median(zip(samples.ours, samples.theirs).map { $0.processorTime / $1.processorTime }))
  }

  private func add(_ job: BlockJob, _ row: Row, _ table: inout Table) {
    table.add(
      [
        job.operationName, job.patternName, "\(job.blockBytes)", "\(job.depth)", "\(job.queues)", row.ours.rate.text(0),
        row.theirs.rate.text(0), row.rateRatio.text(2), row.ours.processor.text(0), row.theirs.processor.text(0),
        row.processorRatio.text(2), row.ours.p50.text(), row.theirs.p50.text(), row.ours.p99.text(),
        row.theirs.p99.text(),
      ],
      json: [
        ("op", .word(job.operationName)), ("pattern", .word(job.patternName)), ("block", .integer(job.blockBytes)),
        ("depth", .integer(job.depth)), ("queues", .integer(job.queues)), ("iops", .number(row.ours.rate)),
        ("peer_iops", .number(row.theirs.rate)), ("iops_ratio", .number(row.rateRatio)),
        ("cpu_ns", .number(row.ours.processor)),
        ("peer_cpu_ns", .number(row.theirs.processor)), ("cpu_ratio", .number(row.processorRatio)),
        ("p50_us", .number(row.ours.p50)), ("peer_p50_us", .number(row.theirs.p50)), ("p99_us", .number(row.ours.p99)),
        ("peer_p99_us", .number(row.theirs.p99)),
      ])
  }
}
