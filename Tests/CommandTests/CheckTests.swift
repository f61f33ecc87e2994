import Foundation
import HostIO
import Testing
import VirtioTestKit

@Suite("sluice check, as typed", .serialized) struct CheckTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private static let fast = [
    "--only", "split", "--only", "invalidate-lazy", "--only", "unknown-request", "--timeout", "60",
  ]

  /// Examines a disk that is served with these words.
  private func check(_ words: [String], disk: [String] = []) throws -> Command.Result {
    let image = try folder.image()
    let disk = try Command.Running(
      ["serve", "blk", "--socket-path", folder.path("s.sock"), "--blk-file", image] + disk)
    try folder.waitUntilAnswered("s.sock", disk)
    return try withExtendedLifetime(disk) { try Command.run(["check", folder.path("s.sock")] + words) }
  }

  @Test("A back-end that keeps the rules: a line a check, a summary, status 0")
  func kept() throws {
    let result = try check(Self.fast + ["--type", "blk"])
    #expect(result.status == 0 && result.errors == "", "\(result.output)\(result.errors)")
    let lines = result.output.split(separator: "\n")
    #expect(lines.count == 4 && lines.dropLast().allSatisfy { $0.hasPrefix("kept ") })
    #expect(lines.last?.hasPrefix("3 kept in ") == true)
  }

  @Test("JSON is an object a line: the checks, then the summary")
  func json() throws {
    let result = try check(Self.fast + ["--type", "blk", "--json"])
    let objects = try Command.objects(result.output)
    #expect(objects.map { $0["check"] as? String } == ["split", "invalidate-lazy", "unknown-request", nil])
    #expect(objects[1]["rule"] as? String == "R108" && objects[1]["verdict"] as? String == "kept")
    #expect(
      objects[3]["summary"] as? String == "blk" && objects[3]["kept"] as? Int == 3 && objects[3]["broken"] as? Int == 0)
  }

  @Test("A broken rule is status 1, with the sentence on standard error")
  func broken() throws {
    // A disk examined as a file system answers, but not as one.
    let result = try check(["--type", "fs", "--only", "queue-count"], disk: ["--num-queues", "1"])
    #expect(result.status == 1)
    let lines = result.output.split(separator: "\n")
    // Before anything is called broken: that it is no file system.
    #expect(lines.first?.hasPrefix("warning: the back-end does not look like a device of --type fs: ") == true)
    #expect(lines.first?.contains("it looks like --type blk") == true)
    #expect(lines.count == 3 && lines[1].hasPrefix("broken "))
    #expect(result.errors == "sluice: not every rule is kept\n")
  }

  @Test("A back-end that serves once is started anew for every connection, and ended at the end")
  func started() throws {
    let serve = [
      Command.program.path, "serve", "blk", "--once", "--blk-file", try folder.image(), "--socket-path",
      folder.path("s.sock"),
    ]
    let result = try Command.run(
      ["check", folder.path("s.sock"), "--type", "blk", "--only", "split", "--only", "features-again", "--"] + serve)
    #expect(result.status == 0, "\(result.output)\(result.errors)")
    #expect(result.output.split(separator: "\n").count == 3)
    #expect(try Command.run("explain", folder.path("s.sock")).status == 1)
  }

  @Test("A back-end that serves once, started elsewhere, is refused with what to type instead: status 2")
  func once() throws {
    let result = try check(["--type", "blk"], disk: ["--once"])
    #expect(result.status == 2 && result.output == "")
    #expect(result.errors.contains("-- COMMAND"))
  }

  @Test("No back-end, no type, no such check: status 2 and a sentence each")
  func usage() throws {
    let nobody = try Command.run("check", folder.path("none.sock"), "--type", "blk", "--timeout", "0.2")
    #expect(nobody.status == 2 && nobody.errors.contains("cannot be checked"))
    #expect(try Command.run("check", folder.path("none.sock")).errors.contains("--type"))
    #expect(try Command.run("check").errors.contains("socket"))
    let unknown = try Command.run("check", folder.path("none.sock"), "--type", "blk", "--only", "nonsense")
    #expect(unknown.status == 2 && unknown.errors.contains("--list"))
  }

  /// Examines an NVMe controller that the command starts.
  private func checkServer(_ words: [String]) throws -> Command.Result {
    let serve = [
      Command.program.path, "serve", "nvme", "--blk-file", try folder.image(), "--vfio-user", folder.path("n.sock"),
    ]
    return try Command.run(["check", "--vfio-user", folder.path("n.sock")] + words + ["--"] + serve)
  }

  @Test("A vfio-user server is checked as a back-end is: lines, JSON, statuses, and started where it is named")
  func vfioUser() throws {
    let fast = ["--only", "map-overlap", "--only", "region-sparse", "--only", "dma", "--timeout", "60"]
    let lines = try checkServer(fast)
    #expect(lines.status == 0 && lines.errors == "", "\(lines.output)\(lines.errors)")
    #expect(lines.output.split(separator: "\n").count == 4 && lines.output.contains("DMA_MAP"))
    let json = try checkServer(fast + ["--json"])
    let objects = try Command.objects(json.output)
    #expect(
      objects.count == 4 && objects.contains { $0["check"] as? String == "dma" && $0["verdict"] as? String == "kept" })
    #expect(objects.last?["summary"] is String && objects.last?["broken"] as? Int == 0)
    #expect((objects.last?["regions"] as? [Int])?.count == 9)
    let list = try Command.run("check", "--list", "--vfio-user", "-", "--only", "dma")
    #expect(list.status == 0 && list.output.hasPrefix("DMA_MAP\tdma\t"))
  }

  @Test("A server of ours that speaks the other protocol, or serves somebody else, is told from one that is broken")
  func hints() throws {
    let (disk, nvme) = (folder.path("s.sock"), folder.path("n.sock"))
    let blk = try Command.Running(["serve", "blk", "--blk-file", folder.image("a"), "--socket-path", disk])
    let controller = try Command.Running(["serve", "nvme", "--blk-file", folder.image("b"), "--vfio-user", nvme])
    try folder.waitUntilAnswered("s.sock", blk)
    try folder.waitUntilAnswered("n.sock", controller)
    let brief = ["--timeout", "0.5"]
    let other = try Command.run(["check", nvme, "--type", "blk"] + brief)
    #expect(other.status == 2 && other.errors.contains("it speaks vfio-user"), "\(other.errors)")
    let another = try Command.run(["check", "--vfio-user", disk] + brief)
    #expect(another.status == 2 && another.errors.contains("it speaks vhost-user"), "\(another.errors)")
    let client = try UnixSocket.connect(to: nvme)
    let version: [UInt8] = [1, 0, 1, 0, 20, 0, 0, 0] + [UInt8](repeating: 0, count: 12)
    try client.send(version.span)
    #expect(try client.waitReadable(timeout: .seconds(20)))
    let busy = try Command.run(["check", "--vfio-user", nvme] + brief)
    #expect(busy.status == 2 && busy.errors.contains("serves somebody else"), "\(busy.errors)")
    client.shutdown()
    try blk.expectCleanEnd()
    try controller.expectCleanEnd()
  }

  @Test("What fits a vfio-user server not is refused: a type, a second socket, a check of the other kind, nobody there")
  func vfioUserUsage() throws {
    let nobody = folder.path("none.sock")
    for (words, part) in [
      (["--vfio-user", nobody, "--type", "blk"], "--type"), (["--vfio-user", nobody, nobody], "not both"),
      (["--vfio-user", nobody, "--only", "split"], "no check split"),
      (["--vfio-user", nobody, "--timeout", "0.2"], "cannot be checked"),
    ] {
      let result = try Command.run(["check"] + words)
      #expect(result.status == 2 && result.errors.contains(part), "\(words): \(result.errors)")
    }
  }

  @Test("The list names every check with its rule")
  func list() throws {
    let result = try Command.run("check", "--list")
    let lines = result.output.split(separator: "\n")
    #expect(result.status == 0 && lines.count > 100)
    #expect(lines.contains { $0.hasPrefix("R108\tinvalidate-lazy\t") })
  }

  @Test("The list heeds --only and --json")
  func someOfTheList() throws {
    let some = try Command.run("check", "--list", "--only", "split", "--only", "invalidate-lazy")
    #expect(some.status == 0)
    #expect(some.output.split(separator: "\n").map { $0.split(separator: "\t")[1] } == ["split", "invalidate-lazy"])
    let json = try Command.run("check", "--list", "--json", "--only", "invalidate-lazy")
    let object = try json.object
    #expect(
      object["check"] as? String == "invalidate-lazy" && object["rule"] as? String == "R108" && object["says"] is String
    )
    let unknown = try Command.run("check", "--list", "--only", "nonsense")
    #expect(unknown.status == 2 && unknown.output == "" && unknown.errors.contains("no check nonsense"))
  }

  @Test("Every key of the answers in JSON is in snake_case, of explain and of check alike")
  func keys() throws {
    let disk = try folder.serve()
    let answers =
      try Command.run("explain", "--json", folder.path("s.sock")).output
      + Command.run(["check", folder.path("s.sock"), "--type", "rng", "--json", "--only", "queue-count"]).output
      + Command.run("check", "--list", "--json").output
    func check(_ value: Any) {
      if let object = value as? [String: Any] {
        for (key, value) in object {
          #expect(key.wholeMatch(of: /[a-z0-9]+(_[a-z0-9]+)*/) != nil, "\(key)")
          check(value)
        }
      } else if let list = value as? [Any] {
        for value in list { check(value) }
      }
    }
    for line in answers.split(separator: "\n") { check(try JSONSerialization.jsonObject(with: Data(line.utf8))) }
    #expect(
      answers.contains("\"warning\":\"the back-end does not look like a device of --type rng")
        && answers.contains("\"left_out\":0"))
    withExtendedLifetime(disk) {}
  }

  @Test("The help says what every verdict means")
  func help() throws {
    let text = try Command.run("check", "--help").output.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    for verdict in ["kept:", "broken:", "wedged:", "crashed:", "not offered:", "not checked:"] {
      #expect(text.contains(verdict))
    }
  }
}
