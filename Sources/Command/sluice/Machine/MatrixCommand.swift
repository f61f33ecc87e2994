import ArgumentParser
import DeviceCatalog
import Glibc
import HostIO
import Machine
import Synchronization
import VhostUserBackend
import Virtio

/// `sluice matrix`: runs every case of the decision.
struct MatrixCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "matrix",
    abstract: "Test every case of VIRTIO_F_ACCESS_PLATFORM on machines in this process.",
    discussion: """
      Makes a machine in this process for each case: a platform, an old or a new host, iommu_platform, the features \
      that the driver accepts, the interface, the state of the IOMMU, and, if data moves, the ring and the shape of \
      the buffer. It makes real requests, and compares three things with the truth table: the bytes, the path of the \
      accesses, and the fault or refusal. It touches nothing outside this process.

      A cell is named as --json prints it: pc-vtd/new/on/all/modern/attached/blk/packed/indirect/hole

      Exit status: 0 all cells passed, 1 some failed, 2 wrong usage.
      """)

  @Option(
    help: ArgumentHelp(
      "Run only the cells of this platform; `sluice machine --list-platforms` lists the platforms.", valueName: "name"),
    completion: .list(Platform.all.map(\.name)))
  var platform: String?

  @Flag(help: "Print JSON: an object for each cell, one on each line, then the totals.")
  var json = false

  @Option(
    help: ArgumentHelp("Run one cell, and print what is expected, why, and what was observed.", valueName: "cell"))
  var explain: String?

  @Option(help: ArgumentHelp("Machines that run at a time: 1 to 64.", valueName: "n"))
  var threads = 2

  func run() throws {
    guard (1...64).contains(threads) else { throw Failure.usage("--threads must be 1 to 64") }
    if let explain { return try tell(explain) }
    let platforms = try platform.map { [try MachineCommand.platform($0)] } ?? Platform.all
    let cells = platforms.flatMap(Matrix.cells)
    let isWatched = !json && isatty(STDERR_FILENO) == 1
    let shown = Atomic<Int>(0)
    let results = Matrix.run(cells, threads: threads) { done in
      guard isWatched, done * 20 / cells.count > shown.load(ordering: .relaxed) || done == cells.count else { return }
      shown.store(done * 20 / cells.count, ordering: .relaxed)
      StandardStream.error.print(
        "\r\(done) of \(cells.count) cells\(done == cells.count ? "\r\u{1B}[K" : "")", terminator: "")
    }
    var sum = MatrixSum()
    for result in results {
      sum.add(result)
      if json {
        StandardStream.output.print(Self.json(result))
      } else if case .failed(let why) = result.verdict {
        StandardStream.output.print("\(result.cell.name): \(why)")
      }
    }
    if json {
      var object = JSONObject()
      object.add("cells", UInt64(sum.cells))
      object.add("passed", UInt64(sum.passed))
      object.add("failed", UInt64(sum.failed))
      object.add("skipped", UInt64(sum.skipped))
      StandardStream.output.print(object.text)
    } else {
      StandardStream.output.print(MatrixTable(isColoured: isatty(STDOUT_FILENO) == 1).text(results))
      StandardStream.output.print(
        "\n\(sum.cells) cells: \(sum.passed) passed, \(sum.failed) failed, \(sum.skipped) impossible")
    }
    if sum.failed > 0 {
      throw Failure(sentence: "\(sum.failed) of \(sum.cells) cells failed", status: 1)
    }
  }

  private static func json(_ result: CellResult) -> String {
    let decision = result.cell.decision
    var object = JSONObject()
    object.add("cell", result.cell.name)
    object.add("platform", decision.platform.name)
    object.add("host", decision.host.rawValue)
    object.add("iommu_platform", decision.property.rawValue)
    object.add("acknowledged", decision.acknowledgement.rawValue)
    object.add("interface", decision.interface.rawValue)
    object.add("iommu", decision.state.rawValue)
    object.add("device", decision.device.rawValue)
    if let data = result.cell.data {
      object.add("ring", data.ring?.rawValue)
      object.add("descriptors", data.descriptors.rawValue)
      object.add("shape", data.shape.rawValue)
    }
    object.add("expected", result.cell.expected.word)
    switch result.verdict {
    case .passed: object.add("verdict", "passed")
    case .failed(let why):
      object.add("verdict", "failed")
      object.add("seen", why)
    case .skipped(let why):
      object.add("verdict", "skipped")
      object.add("reason", why)
    }
    return object.text
  }

  private func tell(_ name: String) throws {
    guard let cell = Matrix.cell(named: name) else {
      throw Failure.usage("there is no cell \(name); `sluice matrix --json` lists all of them")
    }
    let platform = cell.decision.platform
    func line(_ title: String, _ text: String) {
      StandardStream.output.print("  " + title.padded(to: 12) + text)
    }
    StandardStream.output.print(cell.name)
    line("platform", platform.summary)
    line("", platform.origin)
    line("expected", cell.expected.word)
    for sentence in cell.reasons { line("because", sentence) }
    guard let result = Matrix.run([cell], threads: 1).first else { return }
    for sentence in result.story { line("seen", sentence) }
    switch result.verdict {
    case .passed: line("verdict", "passed")
    case .skipped(let why): line("verdict", "impossible: \(why)")
    case .failed(let why):
      line("verdict", "FAILED: \(why)")
      throw Failure(sentence: "the cell failed", status: 1)
    }
  }
}
