import ArgumentParser
import Glibc
import HostIO
import Machine
import Synchronization
import VhostUserBackend
import Virtio

/// `sluice matrix`: every case of the decision, run.
struct MatrixCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "matrix",
    abstract: "Run every case of the decision whether a device goes through the IOMMU.",
    discussion: """
      Makes a machine in this process for each case: a platform, an old or a new host, iommu_platform, what the driver accepts, \
      the interface, the state of the IOMMU, and for those that move data the ring and the shape of the buffer. Real requests are \
      made, and three things are compared with the truth table: the bytes, the path that the accesses took, and the fault or \
      refusal. Nothing outside this process is touched.

      A cell is named as --json prints it: pc-vtd/new/on/all/modern/attached/blk/packed/indirect/hole

      Exit status: 0 nothing failed, 1 something did, 2 wrong usage.
      """)

  @Option(
    help: ArgumentHelp(
      "Run the cells of this platform only; `sluice machine --list-platforms` names them.", valueName: "name"))
  var platform: String?

  @Flag(help: "A line of JSON a cell, then one with the sums.")
  var json = false

  @Option(
    help: ArgumentHelp("Run one cell, and tell in words what is to come of it and what was seen.", valueName: "cell"))
  var explain: String?

  @Option(help: ArgumentHelp("Machines at a time: 1 to 64.", valueName: "n"))
  var threads = 2

  func run() throws {
    guard (1...64).contains(threads) else { throw Failure.usage("--threads is 1 to 64") }
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
      throw Failure(sentence: "\(sum.failed) of \(sum.cells) cells are not as they have to be", status: 1)
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
      throw Failure.usage("there is no cell \(name); `sluice matrix --json` names all of them")
    }
    let platform = cell.decision.platform
    func line(_ title: String, _ text: String) {
      StandardStream.output.print("  " + title + String(repeating: " ", count: max(12 - title.count, 1)) + text)
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
      throw Failure(sentence: "the cell is not as it has to be", status: 1)
    }
  }
}
