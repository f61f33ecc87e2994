import Testing
import VirtioTestKit

@Suite("An attack finds what is wrong with a device", .timeLimit(.minutes(10))) struct HarnessTests {
  private func verdict(_ vice: FaultyDevice.Vice, _ front: Front) throws -> (Verdict, String) {
    // The violation itself is none: a correct request decides.
    try assess(front, Preparation(kind: .faulty(vice))) { _, _ in .untouched }
  }

  @Test("A device without a vice passes", arguments: Front.all)
  func good(_ front: Front) throws { #expect(try verdict(.none, front).0 == .pass) }

  @Test("A byte behind a buffer, or in memory of an earlier life, is a FAIL", arguments: Front.all, [FaultyDevice.Vice.scribbles, .remembers])
  func memory(_ front: Front, _ vice: FaultyDevice.Vice) throws {
    let (verdict, why) = try verdict(vice, front)
    #expect(verdict == .fail && why.contains("wrote at 0x3") && why.contains("after the reset") == (vice == .remembers), "\(why)")
  }

  @Test("A thread that never sleeps is a FAIL", arguments: Front.all)
  func spins(_ front: Front) throws {
    let (verdict, why) = try verdict(.spins, front)
    #expect(verdict == .fail && why.contains("spins"))
  }

  @Test("A device that does not answer, once or ever, is WEDGED", arguments: [Front(bus: .pci), Front(bus: .mmioLegacy)], [FaultyDevice.Vice.keeps, .mute])
  func silent(_ front: Front, _ vice: FaultyDevice.Vice) throws { #expect(try verdict(vice, front).0 == .wedged) }
}
