import ArgumentParser
import Foundation
import FrontendKit

/// The disk against qemu-storage-daemon's, through a client of another project (libblkio).
struct LibblkioBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "blkio",
    abstract: "As blk, with libblkio as the front-end: `qemu-img bench` with driver=virtio-blk-vhost-user.",
    discussion: """
      The client runs in a minimal Debian trixie, made once by Scripts/lab/chroot, in a mount namespace of its own; \
      that needs root. Sluice and qemu-storage-daemon take turns within each round; figures are medians over the \
      rounds, ratios medians of each round's ratio.
      """)

  @Option(help: "Folder of the Debian trixie with qemu-img and libblkio; Scripts/lab/chroot prints it.") var chroot:
    String?
  @Option(help: "Path of `sluice`; by default the one beside this program.") var sluice: String?
  @Option(help: "Path of the peer.") var peer = "/usr/bin/qemu-storage-daemon"
  @Option(help: "Operations, separated by commas: read, write.") var operations = "read,write"
  @Option(help: "Block sizes in bytes, separated by commas.") var blocks = "4096,65536"
  @Option(help: "Requests under way, separated by commas.") var depths = "1,32,128"
  @Option(help: "Rounds.") var rounds = 5
  @Option(help: "Requests of 4 KiB in one turn; larger blocks get a quarter of it.") var requests = 40_000
  @Option(help: "MiB of each image.") var imageSize = 256
  @Option(help: "Where images and sockets are.") var directory = "/dev/shm"
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  mutating func run() throws {
    guard getuid() == 0 else { throw ValidationError("a chroot needs root") }
    let root = chroot ?? Self.cachedRoot
    guard FileManager.default.isExecutableFile(atPath: root + "/usr/bin/qemu-img") else {
      throw ValidationError(
        "there is no qemu-img in \(root); run Scripts/lab/chroot, which makes the folder and prints its name")
    }
    let scratch = URL(fileURLWithPath: directory).appendingPathComponent(
      "sluice-blkio-\(ProcessInfo.processInfo.processIdentifier)")
    try FileManager.default.createDirectory(at: scratch, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: scratch) }
    let (ours, theirs) = try start(scratch)
    defer {
      ours.stop()
      theirs.stop()
    }
    let titles = ["op", "block", "depth", "iops", "peer iops", "ratio", "cpu ns", "peer cpu ns", "ratio"]
    var table = Table(titles, json: json)
    for operation in operations.split(separator: ",").map(String.init) {
      guard ["read", "write"].contains(operation) else { throw ValidationError("there is no operation \(operation)") }
      for block in try numbers(blocks, "--blocks") {
        for depth in try numbers(depths, "--depths") {
          // With one request under way a turn takes as long with fewer.
          let count = max(1000, requests / (block > 4096 ? 4 : 1) / (depth == 1 ? 4 : 1))
          let job = Job(root: root, isWrite: operation == "write", block: block, depth: depth, count: count)
          _ = try turn(job, ours)
          _ = try turn(job, theirs)
          var samples: [(ours: Sample, theirs: Sample)] = []
          for round in 0..<rounds {
            if round % 2 == 0 {
              let first = try turn(job, ours)
              samples.append((first, try turn(job, theirs)))
            } else {
              let first = try turn(job, theirs)
              samples.append((try turn(job, ours), first))
            }
          }
          add(operation, job, samples, &table)
        }
      }
    }
    table.finish()
  }

  private struct Job {
    var root: String
    var isWrite: Bool
    var block: Int
    var depth: Int
    var count: Int
  }

  private struct Sample {
    var rate: Double
    var processorTime: Double
  }

  private static var cachedRoot: String {
    let variables = ProcessInfo.processInfo.environment
    return (variables["SLUICE_CACHE"] ?? NSHomeDirectory() + "/.cache/sluice") + "/chroot-trixie"
  }

  private func start(_ scratch: URL) throws -> (BackendProcess, BackendProcess) {
    let images = ["sluice.img", "peer.img"].map { scratch.appendingPathComponent($0).path }
    try BlockTarget.makeImages(images, bytes: UInt64(imageSize) << 20)
    let program = try sluice ?? commandBeside()
    guard let ours = try BackendProcess.sluice(image: images[0], directory: scratch, program: program) else {
      throw ValidationError("there is no program \(program)")
    }
    guard
      let theirs = try BackendProcess.storageDaemon(image: images[1], directory: scratch, program: peer, name: "peer")
    else {
      throw ValidationError("there is no program \(peer)")
    }
    for one in [ours, theirs] {
      guard one.waitForSocket() else { throw ValidationError("a back-end does not listen: \(one.output)") }
    }
    return (ours, theirs)
  }

  /// One run of the client, bounded by a minute.
  private func turn(_ job: Job, _ backend: BackendProcess) throws -> Sample {
    let folder = URL(fileURLWithPath: backend.socket).deletingLastPathComponent().path
    let name = URL(fileURLWithPath: backend.socket).lastPathComponent
    let script = """
      mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && mount -t tmpfs shm "$1/dev/shm" && mount --bind "$2" "$1/mnt" || exit 125
      root=$1; shift 2; exec chroot "$root" "$@"
      """
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/timeout")
    process.arguments =
      [
        "--foreground", "-s", "KILL", "60", "unshare", "-m", "sh", "-c", script, "sh", job.root, folder, "qemu-img",
        "bench",
      ]
      + (job.isWrite ? ["-w"] : [])
      + [
        "-c", "\(job.count)", "-d", "\(job.depth)", "-s", "\(job.block)", "--image-opts",
        "driver=virtio-blk-vhost-user,path=/mnt/\(name),cache.direct=on",
      ]
    let output = Pipe()
    process.standardOutput = output
    process.standardError = output
    process.standardInput = FileHandle.nullDevice
    // A client is a connection, and queue threads end with it: their time has to be counted, too.
    let before = backend.totalProcessorTime
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    let used = backend.totalProcessorTime &- before
    // "Run completed in 0.123 seconds."
    guard process.terminationStatus == 0,
      let word = text.components(separatedBy: "completed in ").last?.split(separator: " ").first,
      let seconds = Double(word), seconds > 0
    else { throw ValidationError("qemu-img bench failed: \(text)\(backend.output)") }
    return Sample(rate: Double(job.count) / seconds, processorTime: Double(used) / Double(job.count))
  }

  private func add(_ operation: String, _ job: Job, _ samples: [(ours: Sample, theirs: Sample)], _ table: inout Table) {
    let rate = median(samples.map(\.ours.rate))
    let peerRate = median(samples.map(\.theirs.rate))
    let rateRatio = median(samples.map { $0.ours.rate / $0.theirs.rate })
    // The clock is coarse: sums over the rounds, not medians of them.
    let time = samples.map(\.ours.processorTime).reduce(0, +) / Double(samples.count)
    let peerTime = samples.map(\.theirs.processorTime).reduce(0, +) / Double(samples.count)
    let timeRatio = peerTime > 0 ? time / peerTime : 0
    table.add(
      [
        operation, "\(job.block)", "\(job.depth)", rate.text(0), peerRate.text(0), rateRatio.text(2), time.text(0),
        peerTime.text(0),
        timeRatio.text(2),
      ],
      json: [
        ("op", .word(operation)), ("pattern", .word("sequential")), ("block", .integer(job.block)),
        ("depth", .integer(job.depth)),
        ("queues", .integer(1)), ("iops", .number(rate)), ("peer_iops", .number(peerRate)),
        ("iops_ratio", .number(rateRatio)),
        ("cpu_ns", .number(time)), ("peer_cpu_ns", .number(peerTime)), ("cpu_ratio", .number(timeRatio)),
      ])
  }
}
