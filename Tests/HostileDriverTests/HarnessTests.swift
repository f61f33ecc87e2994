import Testing

@Suite("An attack finds what is wrong with a device", .timeLimit(.minutes(10))) struct HarnessTests {
  private func verdict(_ flaw: FaultyDevice.Flaw, _ transport: Transport) throws -> (Verdict, String) {
    // The violation itself has no result: a correct request decides.
    try assess(transport, Preparation(kind: .faulty(flaw))) { _, _ in .untouched }
  }

  @Test("A device without a flaw passes", arguments: [Transport].all)
  func good(_ transport: Transport) throws { #expect(try verdict(.none, transport).0 == .pass) }

  @Test(
    "A byte behind a buffer, or in memory of an earlier session, is a FAIL", arguments: [Transport].all,
    [FaultyDevice.Flaw.scribbles, .remembers])
  func memory(_ transport: Transport, _ flaw: FaultyDevice.Flaw) throws {
    let (verdict, why) = try verdict(flaw, transport)
    #expect(
      verdict == .fail && why.contains("wrote at 0x3") && why.contains("after the reset") == (flaw == .remembers),
      "\(why)")
  }

  @Test("A thread that never sleeps is a FAIL", arguments: [Transport].all)
  func spins(_ transport: Transport) throws {
    let (verdict, why) = try verdict(.spins, transport)
    #expect(verdict == .fail && why.contains("spins"))
  }

  @Test(
    "A device that does not answer, once or ever, is WEDGED",
    arguments: [Transport(bus: .pci), Transport(bus: .mmioLegacy)], [FaultyDevice.Flaw.keeps, .mute])
  func silent(_ transport: Transport, _ flaw: FaultyDevice.Flaw) throws {
    #expect(try verdict(flaw, transport).0 == .wedged)
  }
}
