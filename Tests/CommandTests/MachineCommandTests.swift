import Foundation
import Testing
import VirtioTestKit

@Suite("sluice matrix and sluice machine, as typed") struct MachineCommandTests {
  @Test("In JSON a line a cell, impossible ones with their reason, and the sums")
  func json() throws {
    let result = try Command.run("matrix", "--platform", "confidential", "--json")
    #expect(result.status == 0 && result.errors == "")
    var objects = try Command.objects(result.output)
    let sums = objects.removeLast()
    #expect(sums["cells"] as? Int == objects.count && sums["failed"] as? Int == 0)
    for verdict in ["passed", "skipped"] {
      #expect(sums[verdict] as? Int == objects.filter { $0["verdict"] as? String == verdict }.count)
    }
    #expect(objects.allSatisfy { $0["verdict"] as? String == "passed" || ($0["reason"] as? String)?.isEmpty == false })
    #expect(Set(objects.compactMap { $0["cell"] as? String }).count == objects.count)
  }

  @Test("The table has a row for the platform and fits 100 columns")
  func table() throws {
    let result = try Command.run("matrix", "--platform", "confidential")
    let lines = result.output.split(separator: "\n")
    #expect(result.status == 0 && lines.contains { $0.hasPrefix("confidential ") })
    #expect(lines.allSatisfy { $0.count <= 100 })
  }

  @Test("A cell is explained: expected, because, seen")
  func explained() throws {
    let result = try Command.run("matrix", "--explain", "pc-vtd/new/on/all/modern/attached/blk/packed/indirect/hole")
    #expect(result.status == 0 && result.errors == "")
    for word in ["fault, platform", "R087", "seen        at the spaces", "verdict     passed"] {
      #expect(result.output.contains(word))
    }
    #expect(try Command.run("matrix", "--explain", "pc/new").status == 2)
  }

  @Test("The machine that needs no file runs, and reports each device in JSON")
  func embedded() throws {
    let result = try Command.run("machine", "run", "--json")
    #expect(result.status == 0 && result.errors == "")
    let objects = try Command.objects(result.output)
    #expect(objects.map { $0["address_path"] as? String } == ["platform", "physical", "platform", "platform"])
    #expect(objects.allSatisfy { $0["wrong_bytes"] as? Int == 0 && $0["error"] is NSNull })
  }

  @Test("Platforms are listed")
  func platforms() throws {
    let result = try Command.run("machine", "--list-platforms")
    #expect(result.status == 0)
    for name in ["pc", "pc-vtd", "xen-pv", "ppc64"] { #expect(result.output.contains("\(name) ")) }
  }

  @Test(
    "A mistake in a file is status 2, with what to write instead",
    arguments: [
      (#"{"platfrom":"pc"}"#, "did you mean platform?"),
      (#"{"platform":"pc","devices":[{"kind":"blk","iommu_platfrom":"on"}]}"#, "did you mean iommu_platform?"),
      (#"{"platform":"vax","devices":[{"kind":"blk"}]}"#, "there is no platform vax"),
      (#"{"devices":[{"kind":"tape"}]}"#, "kind is blk, rng, nvme, not tape"),
      (#"{"platform":"sparc64","devices":[{"interface":"legacy"}]}"#, "big-endian"),
      (#"{"platform":"pc","devices":[{"interface":"legacy","iommu_platform":"on"}]}"#, "disable-legacy"),
      (#"{"devices":[{"size":1e99}]}"#, "size is a number"),
      (#"{"devices":[{}],"workload":{"block_size":1000}}"#, "multiple of 512"),
      (#"{"devices":[]}"#, "needs a device"), ("[1,", "not valid JSON"),
    ])
  func mistakes(_ text: String, _ word: String) throws {
    let folder = try TemporaryFolder()
    let path = folder.path("machine.json")
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    let result = try Command.run("machine", "run", path)
    #expect(result.status == 2 && result.output == "", "\(result.output)")
    #expect(result.errors.contains(word) && result.errors.split(separator: "\n").count == 1, "\(result.errors)")
  }

  @Test("What is no file, or none of a file's kind, is refused at once")
  func noFile() throws {
    #expect(try Command.run("machine", "run", "/nowhere/machine.json").status == 2)
    #expect(try Command.run("machine", "run", "/dev/zero").status == 2)
  }

  @Test("A file's machine runs with its image, which keeps what was written")
  func image() throws {
    let folder = try TemporaryFolder()
    let image = try folder.image()
    let text =
      #"{"platform":"pc-virtio-iommu","devices":[{"kind":"blk","name":"d","iommu_platform":"on","image":"\#(image)","ring":"packed"}],"workload":{"kind":"verify","requests":20}}"#
    try Data(text.utf8).write(to: URL(fileURLWithPath: folder.path("m.json")))
    let result = try Command.run("machine", "run", folder.path("m.json"))
    #expect(result.status == 0, "\(result.errors)")
    #expect(result.output.contains("every byte as it was written"))
    #expect(try Data(contentsOf: URL(fileURLWithPath: image)).contains { $0 != 0 })
  }
}
