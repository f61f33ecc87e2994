import ArgumentParser
import DMA
import Foundation

/// The queue alone: what a request costs, and what translating its addresses adds.
struct RingBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ring",
    abstract: "Measures both rings without threads or sockets: nanoseconds per request, physical and translated.",
    discussion: """
      A request is added, published, popped, resolved, its header read, its status written, completed and reaped, in \
      one thread and in batches of 32. The variants take turns within each round; times are medians over the rounds, \
      ratios medians of each round's ratio to the physical variant.
      """)

  @Option(help: "Rounds.") var rounds = 300
  @Option(help: "Requests of each variant in a round.") var requests = 2048
  @Option(help: "Descriptors of a request, separated by commas.") var descriptors = "1,3,32"
  @Option(help: "Ring formats, separated by commas.") var formats = "split,packed"
  @Option(help: "Paths, separated by commas: physical, one, pages16k, pages64k.") var paths =
    "physical,one,pages16k,pages64k"
  @Flag(help: "Omit indirect descriptors.") var directOnly = false
  @Flag(help: "Only indirect descriptors.") var indirectOnly = false
  @Flag(help: "Count instructions too, under valgrind (callgrind).") var instructions = false
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  mutating func run() throws {
    let paths = try paths.split(separator: ",").map { name in
      guard let path = RingPath(rawValue: String(name)) else { throw ValidationError("there is no path \(name)") }
      return path
    }
    let memory = try RingFixture.makeMemory()
    var table = Table(
      ["ring", "descriptors", "indirect", "mappings", "ns", "device ns", "ratio", "device ratio"]
        + (instructions ? ["instructions"] : []),
      json: json)
    var sum: UInt64 = 0
    for format in formats.split(separator: ",") {
      for indirect in directOnly ? [false] : indirectOnly ? [true] : [false, true] {
        for count in descriptors.split(separator: ",").compactMap({ Int($0) }) {
          let shape = RingShape(packed: format == "packed", indirect: indirect, descriptors: count)
          let rows = try measure(memory, shape, paths, &sum)
          for row in rows {
            let counted = instructions ? try countInstructions(shape, row.path) : nil
            table.add(
              [
                shape.format, "\(count)", indirect ? "yes" : "no", row.path.name, row.all.text(), row.device.text(),
                row.ratio.text(3), row.deviceRatio.text(3),
              ] + (instructions ? [counted.map { $0.text(0) } ?? "-"] : []),
              json: [
                ("ring", .word(shape.format)), ("descriptors", .integer(count)),
                ("indirect", .integer(indirect ? 1 : 0)),
                ("mappings", .word(row.path.name)), ("ns", .number(row.all)), ("device_ns", .number(row.device)),
                ("ratio", .number(row.ratio)), ("device_ratio", .number(row.deviceRatio)),
                ("instructions", counted.map { .number($0) } ?? .none),
              ])
          }
        }
      }
    }
    table.finish()
    if sum == 1 { print() }
  }

  private struct Row {
    var path: RingPath
    var all: Double
    var device: Double
    var ratio: Double
    var deviceRatio: Double
  }

  /// All paths of one shape, taking turns.
  private func measure(
    _ memory: GuestMemory, _ shape: RingShape, _ paths: [RingPath], _ sum: inout UInt64
  ) throws -> [Row] {
    var samples = paths.map { _ in (all: [Double](), device: [Double]()) }
    let batches = batches(requests, shape)
    var fixtures = try FixtureSet(paths.count) { try RingFixture(memory, shape, paths[$0], place: $0) }
    // Every page is looked up once before the measurement: a domain enters a page into its table when it is first asked
    // for it.
    for at in paths.indices { _ = try fixtures.run(at, batches: RingFixture.lap(shape)) }
    for round in 0...rounds {
      for place in paths.indices {
        // Each round begins with another variant.
        let at = (place + round) % paths.count
        let time = try fixtures.run(at, batches: batches)
        guard round > 0 else { continue }
        let count = Double(batches * RingFixture.batch)
        samples[at].all.append(Double(time.all) / count)
        samples[at].device.append(Double(time.device) / count)
      }
    }
    sum &+= fixtures.sum
    let base = paths.firstIndex(of: .physical) ?? 0
    return paths.indices.map { i in
      Row(
        path: paths[i], all: median(samples[i].all), device: median(samples[i].device),
        ratio: median(zip(samples[i].all, samples[base].all).map { $0 / $1 }),
        deviceRatio: median(zip(samples[i].device, samples[base].device).map { $0 / $1 }))
    }
  }

  /// Instructions per request: the difference of two runs under callgrind, so that what happens once does not count.
  private func countInstructions(_ shape: RingShape, _ path: RingPath) throws -> Double {
    let callgrind = try Callgrind()
    func total(_ requests: Int) throws -> Double {
      try callgrind.count([
        "ring", "--rounds", "1", "--requests", "\(requests)", "--descriptors", "\(shape.descriptors)", "--formats",
        shape.format,
        "--paths", path.rawValue, shape.indirect ? "--indirect-only" : "--direct-only",
      ])
    }
    let (few, many) = (8192, 16384)
    let (less, more) = (try total(few), try total(many))
    // A round to warm up and one more; long chains do fewer requests.
    let difference = 2 * (batches(many, shape) - batches(few, shape)) * RingFixture.batch
    return (more - less) / Double(difference)
  }

  /// Long chains do fewer requests, so that a round takes about as long.
  private func batches(_ requests: Int, _ shape: RingShape) -> Int {
    max(1, requests / RingFixture.batch / max(1, shape.descriptors / 4))
  }
}

/// Several fixtures, which an array cannot hold.
struct FixtureSet: ~Copyable {
  private var fixtures: FixedArray<RingFixture?>

  init(_ count: Int, _ make: (Int) throws -> RingFixture) throws {
    var failure: (any Error)?
    fixtures = FixedArray(count: count) { index in
      do { return try make(index) } catch {
        failure = error
        return nil
      }
    }
    if let failure { throw failure }
  }

  mutating func run(_ index: Int, batches: Int) throws -> (all: UInt64, device: UInt64) {
    try fixtures[index]!.run(batches: batches)
  }
  var sum: UInt64 { (0..<fixtures.count).reduce(0) { $0 &+ fixtures[$1]!.sum } }
}
