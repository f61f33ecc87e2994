import DMA
import DriverDMA
import IOMMUDrivers
import IOMMUs
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioTestKit

@Suite("A disk on the PCI bus behind each unit, with its driver", .timeLimit(.minutes(10)))
struct PCIPathTests {
  private func exchange(_ rig: PCIRig, _ driver: BlockDriver, rounds: Int) throws {
    for round in 0..<rounds {
      let bytes = pattern(20480, seed: round)
      let (out, back) = (try rig.rig.pages.allocate(24576), try rig.rig.pages.allocate(24576))
      let sent = GuestAddress(out.rawValue + 24)
      #expect(rig.rig.memory.copy(bytes.span, to: sent) == bytes.count)
      let sector = UInt64(round % 7) * 40
      try driver.write(
        sector,
        from: [GuestSegment(sent, count: 4096), GuestSegment(GuestAddress(sent.rawValue + 4096), count: 16384)].span)
      try driver.read(sector, into: [GuestSegment(back, count: 20480)].span)
      #expect(rig.rig.memory.bytes(bytes.count, at: back) == bytes)
      rig.rig.pages.free(out, byteCount: 24576)
      rig.rig.pages.free(back, byteCount: 24576)
    }
  }

  private func faults(_ rig: UnitRig) -> UInt64 {
    if let vtd = rig.vtd { return UInt64(vtd.takeFaults().faults.count) }
    if let amdvi = rig.amdvi { return (try? amdvi.takeEvents()).map { UInt64($0.events.count) } ?? .max }
    return (rig.unit as? TCETable)?.faults ?? (rig.unit as? Sun4uIOMMU)?.faults ?? .max
  }

  @Test(
    "What is written is read back through the unit's translation, strict and deferred (R004, R171)",
    arguments: UnitKind.allCases, [false, true])
  func translated(kind: UnitKind, isDeferred: Bool) throws {
    let rig = try PCIRig(kind)
    let mapper = rig.rig.makeMapper(isDeferred ? .deferred(batch: 32) : .strict)
    let driver = try rig.driver(mapper, packed: isDeferred)
    #expect(AddressPath(negotiated: driver.features) == .platform)
    try exchange(rig, driver, rounds: 30)
    try driver.stop()
    try mapper.flush()
    #expect(faults(rig.rig) == 0 && mapper.lostBytes == 0)
  }

  @Test(
    "Without the bit the disk goes past the unit, which translates nothing of it (R006, R172)",
    arguments: [UnitKind.vtd48, .amdvi64, .tce, .sun4uSmall])
  func bypass(kind: UnitKind) throws {
    let rig = try PCIRig(kind, iommuPlatform: false)
    let mapper = rig.rig.makeMapper(.strict)
    let driver = try rig.driver(mapper)
    #expect(AddressPath(negotiated: driver.features) == .physical)
    try exchange(rig, driver, rounds: 5)
    #expect(mapper.cacheCounts.all == 0 && faults(rig.rig) == 0)
  }

  @Test(
    "A unit that is there after the function translates for it (R032)",
    arguments: [UnitKind.vtd48, .amdvi64, .tce, .sun4uSmall])
  func late(kind: UnitKind) throws {
    let rig = try PCIRig(kind, isUnitLate: true)
    let mapper = rig.rig.makeMapper(.strict)
    let driver = try rig.driver(mapper)
    try exchange(rig, driver, rounds: 5)
    #expect(mapper.cacheCounts.all > 0)
  }

  @Test(
    "A requester in no domain reaches nothing: the device needs a reset, and works when it is attached again (R041, R089)"
  )
  func detached() throws {
    let rig = try PCIRig(.vtd48)
    let vtd = try #require(rig.rig.vtd)
    let domain = try #require(rig.rig.domain as? VTdDomain)
    let mapper = rig.rig.makeMapper(.strict)
    let driver = try rig.driver(mapper)
    try exchange(rig, driver, rounds: 3)
    try vtd.detach(UnitRig.requester)
    let buffer = try rig.rig.pages.allocate(4096)
    _ = try driver.submitRead(0, into: [GuestSegment(buffer, count: 512)].span)
    driver.publish()
    #expect(try rig.interrupts.bounded.until { rig.transport.status.contains(.needsReset) })
    #expect(!vtd.takeFaults().faults.isEmpty)
    try driver.stop()
    try vtd.attach(UnitRig.requester, to: domain)
    try exchange(rig, rig.driver(mapper), rounds: 3)
  }
}
