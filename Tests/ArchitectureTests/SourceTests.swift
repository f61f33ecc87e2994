import Foundation
import Testing

@Suite("Rules for source files")
struct SourceTests {
  @Test("No file is longer than 400 lines")
  func length() throws {
    let files = try Repository.files(
      below: ["Sources", "Tests", "Benchmarks", "Examples", "Fuzz", "Lab"], [".swift", ".c", ".h", ".py"])
    var longest = (lines: 0, path: "")
    for file in files {
      let count = file.lines.count - (file.text.hasSuffix("\n") ? 1 : 0)
      #expect(count <= 400, "\(file.path) has \(count) lines")
      if count > longest.lines { longest = (count, file.path) }
    }
    let total = files.filter { $0.path.hasPrefix("Sources/") }.reduce(0) { $0 + $1.lines.count }
    print("architecture: \(total) lines in Sources; longest file \(longest.path), \(longest.lines) lines")
  }

  @Test("No file or type is named after the lack of a topic")
  func names() throws {
    let empty = ["Common", "Utils", "Util", "Utilities", "Helper", "Helpers", "Manager", "Misc"]
    let kinds: Set<Substring> = ["struct", "class", "enum", "protocol", "actor", "typealias"]
    for file in try Repository.allSwift() {
      let name = String(file.folders.last!.dropLast(".swift".count))
      for word in empty { #expect(!name.hasSuffix(word) && name != word, "\(file.path)") }
      for line in file.codeLines {
        let words = line.words
        for (kind, type) in zip(words, words.dropFirst()) where kinds.contains(kind) {
          for word in empty { #expect(!type.hasSuffix(word), "\(file.path): \(kind) \(type)") }
        }
      }
    }
  }

  @Test("No committed text names a folder of a developer's machine")
  func noMachinePaths() throws {
    // Put together here, so that this file is not its own finding.
    let marks = ["/" + "work/", "/tmp/" + "wt", "/" + "home/", "/opt/" + "swift"]
    let texts = [".swift", ".c", ".h", ".py", ".md", ".dot", ".json", ".sh", "Makefile", ".yml", ".svg"]
    let top = try FileManager.default.contentsOfDirectory(atPath: Repository.root.path)
    for file in try Repository.files(
      below: ["Sources", "Tests", "Benchmarks", "Examples", "Fuzz", "Documentation", "Lab", "Scripts"],
      texts + [""])
    {
      for mark in marks where file.text.contains(mark) { Issue.record("\(file.path) contains \(mark)") }
    }
    for name in top where texts.contains(where: { name.hasSuffix($0) }) {
      let text = try String(contentsOf: Repository.root.appendingPathComponent(name), encoding: .utf8)
      for mark in marks where text.contains(mark) { Issue.record("\(name) contains \(mark)") }
    }
  }

  @Test("Bit 33 of what was negotiated is read in one place (R013)")
  func oneReader() throws {
    // Saying what was offered decides nothing.
    var readers: [String] = []
    for file in try Repository.swiftSources() {
      for (number, line) in file.codeLines.enumerated() where line.contains("contains(.accessPlatform)") {
        if line.contains("offeredFeatures.contains(") { continue }
        readers.append("\(file.path):\(number + 1)")
      }
    }
    #expect(
      readers.count == 1 && readers.allSatisfy { $0.hasPrefix("Sources/Specification/Virtio/AddressPath.swift") },
      "\(readers)")
  }

  @Test("Devices never name an address, a feature bit about addresses or a transport")
  func devicesKnowNoAddresses() throws {
    let forbidden: Set<Substring> = [
      "DMAAddress", "GuestAddress", "FrontendAddress", "accessPlatform", "AddressPath", "IOTLB", "VhostUser",
      "QueueWorker",
    ]
    for file in try Repository.files(below: deviceModules.map { "Sources/Devices/\($0)" }, [".swift"]) {
      for (number, line) in file.codeLines.enumerated() {
        for word in line.words where forbidden.contains(word) { Issue.record("\(file.path):\(number + 1): \(word)") }
      }
    }
  }

  /// The modules of virtio devices, but for VirtioIOMMU, whose business addresses are.
  private var deviceModules: [String] {
    get throws {
      let all = try Repository.files(below: ["Sources/Devices"], [".swift"]).map { $0.folders[2] }
      return Set(all).filter { $0.hasPrefix("Virtio") && !["VirtioServing", "VirtioIOMMU"].contains($0) }.sorted()
    }
  }

  @Test("A device is named in its own module, where the specification numbers it, by its driver and in the catalogue")
  func deviceNames() throws {
    // A disk is at home in many places, and has options of its own.
    let modules = try deviceModules.filter { $0 != "VirtioBlock" }
    #expect(modules.contains("VirtioEntropy"))
    for module in modules {
      let name = String(module.dropFirst("Virtio".count))
      var names: Set<Substring> = [Substring(name), Substring(name.lowercased())]
      if name == "Entropy" { names.insert("rng") }
      let places = try Repository.swiftSources().filter { file in
        !file.path.hasPrefix("Sources/Devices/\(module)/")
          && (file.text.split { !$0.isLetter }.contains(where: names.contains) || file.text.contains(name))
      }.map(\.path)
      let own = [
        "Sources/Command/sluice/Serve\(name).swift", "Sources/Devices/DeviceCatalog/DeviceKind.swift",
        "Sources/Drivers/VirtioDrivers/Drivers/\(name)Driver.swift", "Sources/Specification/Virtio/DeviceID.swift",
      ]
      #expect(
        Set(places).isSubset(of: own),
        "\(places): what others have to know of a device is a property of its kind: see DeviceCatalog.")
    }
  }

  /// Where every request, or every round of a queue, comes by. What a file has besides, such as `WorkerMailbox`, is not
  /// here.
  private static let onTheWay = [
    "Memory/DMA/BufferSegments", "Memory/DMA/Cells", "Memory/DMA/ChainMemory", "Memory/DMA/IOTLB",
    "Memory/DMA/IndirectScratch", "Memory/DMA/RingMemory",
    "Memory/DMA/SegmentList", "Memory/HostIO/EventFD", "Memory/HostIO/IOUring", "Memory/HostIO/Poller",
    "Specification/Virtio/Queue/ChainWalk",
    "Specification/Virtio/Queue/DescriptorChain", "Specification/Virtio/Queue/InOrderWindow",
    "Specification/Virtio/Queue/PackedRing",
    "Specification/Virtio/Queue/QueueStatistics",
    "Specification/Virtio/Queue/SplitRing", "Specification/Virtio/Queue/Virtqueue",
    "Servers/VhostUserBackend/PackedInflight", "Servers/VhostUserBackend/SplitInflight",
    "Devices/VirtioBlock/InFlightRequest",
    "Devices/VirtioBlock/InFlightRequests",
    "Devices/VirtioBlock/BlockHandler", "Devices/VirtioBlock/BlockRequest", "Devices/VirtioBlock/BlockWork",
    "Devices/Storage/DiskRing", "Devices/Storage/DiskTransfer", "Devices/Storage/InlineIOPolicy",
    "Devices/VirtioEntropy/EntropyDevice", "Devices/VirtioServing/QueueWorker",
  ]

  @Test("No task, actor or lock is on the way of a request")
  func noLocks() throws {
    let forbidden: Set<Substring> = ["Mutex", "withLock", "Task", "actor", "await", "async", "DispatchQueue"]
    let files = try Repository.swiftSources()
    for name in Self.onTheWay {
      let path = "Sources/\(name).swift"
      guard let file = files.first(where: { $0.path == path }) else {
        Issue.record("\(path) is not there: say in this file where requests go now")
        continue
      }
      for (number, line) in file.codeLines.enumerated() {
        for word in line.words where forbidden.contains(word) { Issue.record("\(path):\(number + 1): \(word)") }
      }
    }
  }
}
