import Foundation
import Testing
import VirtioTestKit

/// What the fuzz targets start from, and random changes of it, without the fuzzer.
@Suite("Fuzz corpora") struct CorpusTests {
  private static func seeds(_ name: String) throws -> [[UInt8]] {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
      .appendingPathComponent("Fuzz/Corpora/\(name)")
    return try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
      .sorted { $0.path < $1.path }.map { [UInt8](try Data(contentsOf: $0)) }
  }

  @Test("Seeds and their mutations neither trap nor write where they may not (R084, R091)", arguments: [false, true])
  func mutations(_ packed: Bool) throws {
    let seeds = try Self.seeds(packed ? "PackedChain" : "SplitChain")
    try #require(seeds.count >= 8)
    var random = SeededGenerator(packed ? 5 : 6)
    for seed in seeds {
      #expect(RingFuzz.run(seed, packed: packed) == nil)
      for _ in 0..<25 {
        var input = seed
        for _ in 0..<Int.random(in: 1...6, using: &random) {
          // Mostly where rings and page tables are.
          let limit = random.chance(3, in: 4) ? min(input.count, 120) : input.count
          input[Int.random(in: 0..<limit, using: &random)] =
            random.chance(1, in: 3)
            ? [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &random)! : UInt8.random(in: 0...255, using: &random)
        }
        #expect(RingFuzz.run(input, packed: packed) == nil, "\(input.prefix(160))")
      }
    }
  }
}
