import ArgumentParser
import Foundation
import Machine

/// A machine in this process: the cost of a request with each IOMMU and mapper.
struct MachineBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machine",
    abstract: "Measures a request from driver to device and back, behind each IOMMU and with each mapper.",
    discussion: """
      A request reads 4 KiB of a virtio-blk disk in memory, through PCI, with driver and device in two threads of this \
      process. Requests are submitted, published and awaited in batches of --depths, with one notification and one \
      interrupt for each batch. CPU is the process's, driver and device together, and depends little on other \
      programs; time is wall-clock time. Each variant takes turns with a device without the feature bit on a machine \
      without an IOMMU; a ratio is the median over the rounds of its turn to the one beside it. On one processor \
      (`taskset -c 1`) the figures do not depend on the placement of the two threads.
      """)

  @Option(help: "Rounds.") var rounds = 31
  @Option(help: "Requests of a turn.") var requests = 1024
  @Option(help: "Requests of a batch, separated by commas: 1 to 64.") var depths = "1,32"
  @Option(help: "Platforms, separated by commas.") var platforms =
    "pc,pc-vtd,pc-amd-vi,pc-virtio-iommu,ppc64,sparc64,xen-grants"
  @Option(help: "Mappers, separated by commas: physical, bypass, strict, deferred, bounce, premapped.")
  var mappers = "physical,bypass,strict,deferred,bounce,premapped"
  @Flag(help: "Count instructions too, under valgrind (callgrind).") var instructions = false
  @Flag(help: .hidden) var alone = false
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  private final class Variant {
    let platform: Platform
    let mapping: RequestLoad.Mapping
    let load: RequestLoad
    /// What it is compared with; its own, so that both are run as often and find the caches alike.
    let base: RequestLoad
    var times: [Double] = [], cpus: [Double] = [], timeRatios: [Double] = [], cpuRatios: [Double] = []

    init(_ platform: Platform, _ mapping: RequestLoad.Mapping, _ depth: Int) throws {
      self.platform = platform
      self.mapping = mapping
      load = try RequestLoad(platform, mapping, depth: depth)
      base = try RequestLoad(.pc, .physical, depth: depth)
    }
  }

  mutating func run() throws {
    let chosen = try platforms.split(separator: ",").map { name in
      guard let platform = Platform.named(String(name)) else { throw ValidationError("there is no platform \(name)") }
      return platform
    }
    let mappings = try mappers.split(separator: ",").map { name in
      guard let mapping = RequestLoad.Mapping(rawValue: String(name)) else {
        throw ValidationError("there is no mapper \(name)")
      }
      return mapping
    }
    var table = Table(
      ["depth", "platform", "iommu", "mapper", "ns", "cpu ns", "ratio", "cpu ratio"]
        + (instructions ? ["instructions", "ratio"] : []), json: json)
    let callgrind = instructions ? try Callgrind() : nil
    for depth in try numbers(depths, "--depths") {
      let variants = try chosen.flatMap { platform in
        try RequestLoad.mappings(on: platform).filter(mappings.contains).map { try Variant(platform, $0, depth) }
      }
      let batches = max(1, requests / depth)
      if alone {
        for variant in variants { try variant.load.run(batches: batches) }
        continue
      }
      for round in 0...rounds {
        for variant in variants {
          // Each of the two goes first in every other round.
          let first = try turn(round % 2 == 0 ? variant.base : variant.load, batches)
          let second = try turn(round % 2 == 0 ? variant.load : variant.base, batches)
          guard round > 0 else { continue }
          let (mine, other) = round % 2 == 0 ? (second, first) : (first, second)
          let count = Double(batches * depth)
          variant.times.append(mine.time / count)
          variant.cpus.append(mine.cpu / count)
          variant.timeRatios.append(mine.time / other.time)
          variant.cpuRatios.append(mine.cpu / other.cpu)
        }
      }
      let bare = try callgrind.flatMap { try count($0, .pc, .physical, depth) }
      for variant in variants {
        let counted = try callgrind.flatMap { try count($0, variant.platform, variant.mapping, depth) }
        let countedRatio = counted.flatMap { counted in bare.map { counted / $0 } }
        table.add(
          [
            "\(depth)", variant.platform.name, variant.platform.unit.rawValue, variant.mapping.rawValue,
            median(variant.times).text(0),
            median(variant.cpus).text(0), median(variant.timeRatios).text(3), median(variant.cpuRatios).text(3),
          ] + (instructions ? [counted.map { $0.text(0) } ?? "-", countedRatio.map { $0.text(3) } ?? "-"] : []),
          json: [
            ("depth", .integer(depth)), ("platform", .word(variant.platform.name)),
            ("iommu", .word(variant.platform.unit.rawValue)),
            ("mapper", .word(variant.mapping.rawValue)), ("ns", .number(median(variant.times))),
            ("cpu_ns", .number(median(variant.cpus))),
            ("ratio", .number(median(variant.timeRatios))), ("cpu_ratio", .number(median(variant.cpuRatios))),
            ("instructions", counted.map { .number($0) } ?? .none),
            ("instruction_ratio", countedRatio.map { .number($0) } ?? .none),
          ])
      }
    }
    table.finish()
  }

  /// Nanoseconds of a turn, by the clock and of this process's processors.
  private func turn(_ load: RequestLoad, _ batches: Int) throws -> (time: Double, cpu: Double) {
    // All the disk once before: what ran in between has left the caches to itself.
    try load.run(batches: max(1, batches / 4))
    let (start, used) = (now(), clock())
    try load.run(batches: batches)
    // clock() counts microseconds wherever there is POSIX.
    return (Double(now() - start), Double(clock() - used) * 1000)
  }

  /// Instructions per request: the difference of two runs, so that what happens once does not count.
  private func count(
    _ callgrind: Callgrind, _ platform: Platform, _ mapping: RequestLoad.Mapping, _ depth: Int
  ) throws -> Double {
    func total(_ requests: Int) throws -> Double {
      try callgrind.count([
        "machine", "--alone", "--platforms", platform.name, "--mappers", mapping.rawValue, "--depths", "\(depth)",
        "--requests", "\(requests)",
      ])
    }
    let (few, many) = (1024, 3072)
    let (less, more) = (try total(few), try total(many))
    return (more - less) / Double(many - few)
  }
}
