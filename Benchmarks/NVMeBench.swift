import ArgumentParser
import Foundation
import Storage

/// An NVMe controller and its driver in one process: commands by the second, and what each costs.
struct NVMeBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "nvme",
    abstract: "Measures commands of 4 KiB of an NVMe controller, with a driver in the same process.",
    discussion: """
      The driver keeps --depths commands under way and sleeps until an interrupt when none has ended. CPU is that of \
      the process, driver, controller and kernel together; instructions are those outside the kernel. Engines and \
      operations take turns.
      """)

  @Option(help: "Rounds.") var rounds = 9
  @Option(help: "Commands of a turn.") var commands = 20_000
  @Option(help: "Commands under way, separated by commas: 1 to 100.") var depths = "1,32"
  @Option(help: "Operations, separated by commas: read, write.") var operations = "read,write"
  @Option(help: "Engines of the disk, separated by commas: auto, uring, sync.") var engines = "auto,uring,sync"
  @Option(help: "The image; by default one is made in a temporary folder. It is written.") var image: String?
  @Option(name: .customLong("image-size"), help: "MiB of the image that is made.") var imageSize = 64
  @Flag(help: "Go around the page cache.") var direct = false
  @Flag(help: "Have the driver's doorbells in memory.") var shadow = false
  @Flag(help: "Count instructions too, under valgrind (callgrind).") var instructions = false
  @Flag(help: .hidden) var alone = false
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  private final class Row {
    let engine: DiskEngine
    let load: NVMeLoad
    var times: [Double] = [], cpus: [Double] = []
    init(_ engine: DiskEngine, _ load: NVMeLoad) { (self.engine, self.load) = (engine, load) }
  }

  mutating func run() throws {
    let made = FileManager.default.temporaryDirectory.appending(path: "sluice-nvme-\(UUID().uuidString).img").path
    if image == nil { try BlockTarget.makeImages([made], bytes: UInt64(imageSize) << 20) }
    defer { if image == nil { try? FileManager.default.removeItem(atPath: made) } }
    let path = image ?? made
    let chosen = try engines.split(separator: ",").map { name in
      guard let engine = DiskEngine(rawValue: String(name)) else { throw ValidationError("there is no engine \(name)") }
      return engine
    }
    var table = Table(
      ["op", "depth", "engine", "commands/s", "ns", "cpu ns"] + (instructions ? ["instructions"] : []), json: json)
    let callgrind = instructions ? try Callgrind() : nil
    for operation in operations.split(separator: ",") {
      for depth in try numbers(depths, "--depths") {
        guard 1...100 ~= depth else { throw ValidationError("--depths are 1 to 100, not \(depth)") }
        let rows = try chosen.map { engine in
          var disk = DiskOptions(path: path)
          (disk.direct, disk.engine, disk.lock) = (direct, engine, .never)
          return Row(engine, try NVMeLoad(disk, depth: depth, isWrite: operation == "write", hasShadow: shadow))
        }
        if alone {
          for row in rows { try row.load.run(commands: commands) }
          continue
        }
        for round in 0...rounds {
          for row in rows {
            let (start, used) = (now(), clock())
            try row.load.run(commands: commands)
            guard round > 0 else { continue }
            row.times.append(Double(now() - start) / Double(commands))
            // clock() counts microseconds wherever there is POSIX.
            row.cpus.append(Double(clock() - used) * 1000 / Double(commands))
          }
        }
        for row in rows {
          let counted = try callgrind.flatMap { try count($0, path, String(operation), depth, row.engine) }
          let time = median(row.times)
          table.add(
            [
              "\(operation)", "\(depth)", row.engine.rawValue, (1e9 / time).text(0), time.text(0),
              median(row.cpus).text(0),
            ]
              + (instructions ? [counted.map { $0.text(0) } ?? "-"] : []),
            json: [
              ("op", .word(String(operation))), ("depth", .integer(depth)), ("engine", .word(row.engine.rawValue)),
              ("commands_per_second", .number(1e9 / time)), ("ns", .number(time)),
              ("cpu_ns", .number(median(row.cpus))),
              ("instructions", counted.map { .number($0) } ?? .none),
            ])
        }
      }
    }
    table.finish()
  }

  /// Instructions of a command: the difference of two runs, so that what happens once does not count.
  private func count(
    _ callgrind: Callgrind, _ path: String, _ operation: String, _ depth: Int, _ engine: DiskEngine
  ) throws -> Double {
    func total(_ commands: Int) throws -> Double {
      try callgrind.count(
        [
          "nvme", "--alone", "--image", path, "--operations", operation, "--depths", "\(depth)", "--engines",
          engine.rawValue, "--commands", "\(commands)",
        ] + (direct ? ["--direct"] : []) + (shadow ? ["--shadow"] : []))
    }
    let (few, many) = (2048, 8192)
    let (less, more) = (try total(few), try total(many))
    return (more - less) / Double(many - few)
  }
}
