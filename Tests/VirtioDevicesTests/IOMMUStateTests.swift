import DMA
import IOMMUInterface
import Testing
import Virtio

@testable import VirtioIOMMU

/// What a virtio-iommu carries to another machine.
@Suite("virtio-iommu: saved state")
struct IOMMUStateTests {
  /// Endpoint 8 in a domain with mappings of every permission, 9 in a bypass domain, 10 in none.
  private func source(bypass: Bool = false, _ options: IOMMUOptions = IOMMURig.options()) throws -> IOMMURig {
    let rig = try IOMMURig(options, endpoints: [8, 9, 10])
    rig.configure([bypass ? 1 : 0], at: 36)
    #expect(try rig.attach(1, 8) == Status.ok && rig.attach(7, 9, flags: 1) == Status.ok)
    for flags in 0..<4 as Range<UInt32> {
      #expect(try rig.map(1, UInt64(flags) * 2, to: 4 + UInt64(flags), flags: flags) == Status.ok)
    }
    #expect(try rig.map(1, 20, 3, to: 9) == Status.ok && rig.mapTop(1, to: 3) == Status.ok)
    return rig
  }

  /// What each endpoint finds at each page, both ways.
  private func view(_ rig: IOMMURig) -> [Result<UInt8, DMAInterruption>] {
    var all: [Result<UInt8, DMAInterruption>] = []
    for endpoint in [8, 9, 10] as [UInt32] {
      for address in (0..<24).map({ UInt64($0) * 4096 + 5 }) + [.max] {
        for access in [DMAAccess.read, .write] { all.append(rig.look(endpoint, address, access)) }
      }
    }
    return all
  }

  @Test(
    "A device that takes over domains, mappings with permissions, attachments and bypass translates as the one before (R139)",
    arguments: [false, true])
  func carries(bypass: Bool) throws {
    let old = try source(bypass: bypass)
    let new = try IOMMURig(endpoints: [8, 9, 10])
    // Something else was here before, and nothing of it stays.
    #expect(
      try new.attach(3, 8) == Status.ok && new.map(3, 1, 14, to: 0) == Status.ok && new.attach(1, 10) == Status.ok)
    new.configure([bypass ? 0 : 1], at: 36)
    try new.device.restoreState(old.device.saveState())
    #expect(view(new) == view(old))
    #expect(new.look(8, 4 * 4096, .write) == .success(7) && new.look(8, 4 * 4096) == new.refused(4 * 4096, .permission))
    #expect(new.look(10, 0) == (bypass ? .success(1) : new.refused(0)) && new.look(9, 0) == .success(1))
    #expect(
      new.device.attachments == old.device.attachments && new.device.domains == [1, 7]
        && new.device.mappings(of: 1) == 6)
    #expect(new.configuration() == old.configuration() && new.device.saveState() == old.device.saveState())
    // And its driver goes on where it was.
    #expect(
      try new.map(1, 21, to: 0) == Status.invalid && new.unmap(1, 20, 3) == Status.ok
        && new.map(1, 21, to: 0) == Status.ok)
    #expect(new.look(8, 21 * 4096) == .success(1) && new.look(8, 20 * 4096) == new.refused(20 * 4096))
    #expect(try new.detach(7, 9) == Status.ok)
    #expect(new.look(9, 0) == (bypass ? .success(1) : new.refused(0)))
  }

  @Test(
    "Endpoints that come after the state find the domain they were in; a reset forgets those that never come (R139)")
  func later() throws {
    let old = try source()
    let new = try IOMMURig(endpoints: [])
    try new.device.restoreState(old.device.saveState())
    for number in [10, 9, 8] as [UInt16] { new.plug(number) }
    #expect(view(new) == view(old) && new.device.attachments == old.device.attachments)
    let empty = try IOMMURig(endpoints: [])
    try empty.device.restoreState(old.device.saveState())
    #expect(empty.device.attachments.count == 2)
    empty.device.reset()
    #expect(empty.device.attachments.isEmpty && empty.device.domains.isEmpty)
    try empty.restart()
    #expect(try empty.attach(1, 8) == Status.noEntry)
  }

  @Test("What an older device let through by the accepted feature is let through again (R139, R164)")
  func accepted() throws {
    let old = try IOMMURig(IOMMURig.options { $0.bypass = .accepted })
    let new = try IOMMURig(IOMMURig.options { $0.bypass = .accepted })
    new.device.reset()
    #expect(new.look(8, 0) == new.refused(0))
    try new.device.restoreState(old.device.saveState())
    #expect(new.look(8, 0) == .success(1))
  }

  @Test(
    "A state that the device's own features, ranges and limits forbid is refused, and changes nothing (R140)",
    arguments: 0..<10)
  func refuses(which: Int) throws {
    let state = try source().device.saveState()
    let options = IOMMURig.options {
      switch which {
      case 0: $0.bypass = .never
      case 1: $0.bypass = .accepted
      case 2: $0.inputRange = 0x1000 ... .max
      case 3: $0.domainRange = 0...6
      case 4: $0.pageSizeMask = 0xffff_ffff_ffff_0000
      case 5: $0.maxDomains = 1
      case 6: $0.maxMappings = 5
      case 7: $0.maxMappingsPerDomain = 5
      case 8: $0.ownRequester = RequesterID(rawValue: 8)
      default: $0.reservedMemory = [IOMMUReservedMemory(0x1_5800...0x1_5fff, .reserved)]
      }
    }
    let rig = try IOMMURig(options, endpoints: [8, 9, 10])
    #expect(try rig.attach(2, 9) == Status.ok && rig.send(rig.mapBytes(2, 0x4_0000, 0x4_ffff, 0)) == Status.ok)
    let before = (view(rig), rig.device.saveState())
    #expect(throws: DeviceError.self) { try rig.device.restoreState(state) }
    #expect(view(rig) == before.0 && rig.device.saveState() == before.1 && rig.look(9, 0x4_0000) == .success(1))
  }

  @Test("Bytes that no device saved are refused as a whole, and what is taken over is what they say (R139, R140)")
  func hostile() throws {
    let good = try source().device.saveState()
    let rig = try IOMMURig(endpoints: [8, 9])
    var taken = 0
    func offer(_ bytes: [UInt8]) {
      let before = rig.device.saveState()
      do throws(DeviceError) {
        try rig.device.restoreState(bytes)
        taken += 1
        #expect(rig.device.saveState() == bytes)
      } catch {
        #expect(rig.device.saveState() == before)
      }
    }
    for count in 0..<good.count {
      #expect(throws: DeviceError.self) { try rig.device.restoreState(Array(good[..<count])) }
    }
    #expect(throws: DeviceError.self) { try rig.device.restoreState(good + [0]) }
    offer(good)
    #expect(taken == 1)
    for at in good.indices {
      for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at] &+ 1, good[at] ^ 0x10] as [UInt8] {
        var bytes = good
        bytes[at] = value
        offer(bytes)
      }
    }
    // More than the unchanged bytes, and far from all: other domains' numbers, addresses and permissions make sense
    // too.
    #expect(taken > good.count && taken < 8 * good.count)
    // The device still serves its driver.
    try rig.device.restoreState(good)
    #expect(try rig.map(1, 30, to: 2) == Status.ok && rig.look(8, 30 * 4096) == .success(3))
  }
}
