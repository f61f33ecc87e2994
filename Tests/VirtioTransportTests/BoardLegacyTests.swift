import DMA
import IOMMUInterface
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioServing
import VirtioTestKit

/// Offsets are written out here as the table of §4.2.4 has them.
@Suite("The legacy interface of memory-mapped devices", .timeLimit(.minutes(10))) struct BoardLegacyTests {
  @Test(
    "A queue is where its page number says in physical memory, and no IOMMU hears of it (R025, R027)",
    arguments: [false, true])
  func data(_ smaller: Bool) throws {
    let iommu = PageIOMMU()
    let rig = try BoardRig(CounterDevice(), .old, iommu: iommu)
    let transport = try rig.driver()
    #expect(transport.isLegacy)
    let features: Features = [.indirectDescriptors, .eventIndex]
    let (place, ring) = rig.startLegacy(transport, features, size: smaller ? 8 : nil)
    #expect(rig.window[0x040] == 0x100)
    for round in UInt8(0)..<20 { #expect(rig.echo(transport, place, ring, indirect: true, seed: round)) }
    #expect(iommu.lookUps(by: BoardRig.requester) == 0 && iommu.faults.isEmpty)
    #expect(rig.endpoint.counts.physical.misses > 0 && rig.endpoint.counts.translated.misses == 0)
    #expect(transport.disableQueue(0))
    #expect(!rig.mmio.control.isRunning(0) && rig.window[0x040] == 0)
  }

  @Test("Feature words above the first show nothing, whatever is offered, and nothing is accepted there (R026)")
  func features() throws {
    let rig = try BoardRig(CounterDevice(), .old)
    rig.window[0x014] = 0
    // Indirect descriptors, and ANY_LAYOUT, which has to be offered (§6.3).
    #expect(rig.window[0x010] >> 27 & 3 == 3)
    for word in [UInt32(1), 2, 3, .max] {
      rig.window[0x014] = word
      #expect(rig.window[0x010] == 0)
      rig.window[0x024] = word
      rig.window[0x020] = .max
    }
    #expect(rig.mmio.control.negotiatedFeatures == [])
    rig.window[0x024] = 0
    rig.window[0x020] = .max
    #expect(rig.mmio.control.negotiatedFeatures == (try rig.driver().deviceFeatures))
    let modern = try BoardRig(CounterDevice()).driver().deviceFeatures
    #expect(!modern.contains(.anyLayout))
  }

  @Test(
    "The page size counts the page number, the alignment places the used ring, and what is no power of two is ignored (R025)",
    arguments: [(UInt32(4096), UInt32(4096)), (65536, 4096), (8192, 64), (256, 16384)])
  func pages(_ pageSize: UInt32, _ alignment: UInt32) throws {
    let rig = try BoardRig(CounterDevice(), .old)
    let transport = try rig.driver()
    transport.status = [.acknowledge, .driver]
    for size in [pageSize, 0x1001, 3] { rig.window[0x028] = size }
    rig.window[0x030] = 0
    rig.window[0x038] = 16
    for one in [alignment, 0, 2, 48] { rig.window[0x03c] = one }
    let place = rig.legacyPlace(16, alignment: UInt64(alignment))
    let ring = place.ring([], .literal)
    rig.window[0x040] = 0x10_0000 / pageSize
    #expect(rig.window[0x040] == 0x10_0000 / pageSize)
    // While the queue is used, its number keeps its meaning.
    rig.window[0x028] = 128
    #expect(rig.window[0x040] == 0x10_0000 / pageSize)
    transport.status = [.acknowledge, .driver, .driverOK]
    #expect(rig.echo(transport, place, ring))
  }

  @Test("GuestPageSize outlives a reset, as drivers that write it first rely on; the queue does not (R060)")
  func reset() throws {
    let rig = try BoardRig(CounterDevice(), .old)
    let transport = try rig.driver()
    _ = rig.startLegacy(transport)
    transport.status = []
    #expect(rig.window[0x040] == 0 && !rig.mmio.control.isRunning(0))
    let (place, ring) = rig.startLegacy(transport)
    #expect(rig.echo(transport, place, ring))
    // At power on it is gone, and without it a page number is nowhere.
    rig.mmio.reset()
    rig.window[0x030] = 0
    rig.window[0x040] = 0x100
    #expect(rig.window[0x040] == 0)
  }

  @Test("A queue that is used before DRIVER_OK works, untranslated (R027)")
  func early() throws {
    let rig = try BoardRig(CounterDevice(), .old, iommu: PageIOMMU())
    let transport = try rig.driver()
    transport.status = []
    transport.status = [.acknowledge, .driver]
    let place = rig.legacyPlace(16)
    let ring = place.ring([], .literal)
    transport.enableQueue(0, place.layout)
    #expect(rig.echo(transport, place, ring))
    #expect(rig.iommu?.lookUps(by: BoardRig.requester) == 0)
  }

  @Test("Registers of virtio 1 are not there")
  func modern() throws {
    let rig = try BoardRig(CounterDevice(), .old)
    let transport = try rig.driver()
    _ = rig.startLegacy(transport)
    for at in [UInt64(0x044), 0x080, 0x0a4, 0x0b0, 0x0bc, 0x0c0, 0x0fc] {
      rig.window[at] = 1
      #expect(rig.window[at] == 0)
    }
    #expect(rig.mmio.control.isRunning(0))
    transport.status = [.acknowledge, .driver, .featuresOK]
    #expect(!transport.status.contains(.featuresOK))
  }
}
