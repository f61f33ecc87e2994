import Foundation
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

/// The device against a model of lists, with random requests and with what the fuzzer kept.
@Suite("virtio-iommu: against the model")
struct IOMMUModelTests {
  private func run(_ input: [UInt8]) -> String? {
    IOMMUFuzz.run(input) { memory, limits in
      var options = IOMMURig.options()
      options.inputRange = limits.input
      options.domainRange = limits.domains
      options.probeSize = UInt32(limits.probeSize)
      options.maxDomains = limits.maxDomains
      options.maxMappings = limits.maxMappings
      options.maxMappingsPerDomain = limits.maxMappingsPerDomain
      for (endpoint, ranges) in limits.reserved {
        options.reservedMemoryOf[RequesterID(rawValue: endpoint)] = ranges.map { IOMMUReservedMemory($0) }
      }
      return try IOMMUDevice(memory, options: options)
    }
  }

  @Test(
    "Random requests, resets and unplugs end as the model says, and endpoints reach what it says (R145–R168)",
    arguments: [UInt64(1), 2, .random(in: 3...UInt64.max)])
  func random(seed: UInt64) {
    var random = SeededGenerator(seed)
    for lap in 0..<25 {
      // Nearly all of it attaches, maps and unmaps: a reset in every sixteenth step would leave little to look at.
      let input = (0..<1200).map { _ in UInt8.random(in: 0...255, using: &random) }
      #expect(run(input) == nil, "seed \(seed), lap \(lap)")
      var busy: [UInt8] = [0]
      for _ in 0..<200 {
        busy.append([0, 4, 4, 5, 6, 8, 3][Int.random(in: 0..<7, using: &random)])
        busy += (0..<5).map { _ in UInt8.random(in: 0...255, using: &random) & 0x8f }
      }
      #expect(run(busy) == nil, "seed \(seed), busy lap \(lap)")
    }
  }

  @Test("What the fuzzer's corpus holds ends as the model says")
  func corpus() throws {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent(
      "../../Fuzz/Corpora/IOMMURequests")
    let files = try FileManager.default.contentsOfDirectory(
      at: folder.standardizedFileURL, includingPropertiesForKeys: nil)
    #expect(!files.isEmpty)
    for file in files { #expect(run([UInt8](try Data(contentsOf: file))) == nil, "\(file.lastPathComponent)") }
  }
}
