import DMA
import DriverDMA
import IOMMUInterface
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioTestKit

/// A unit that is in front of the device and lets everything pass.
private final class PassThroughUnit: IOMMU {
  func adopt(_ endpoint: EndpointSpace) { endpoint.setRoute(.physical) }
  func release(_ endpoint: EndpointSpace) { endpoint.setRoute(.blocked(.stopped)) }
}

@Suite("Which memory a memory-mapped device's queues reach", .timeLimit(.minutes(10))) struct PathTests {
  private func run(_ rig: DeviceRig, _ way: RingKind, _ base: Features, scattered: Bool) throws -> Bool {
    let transport = try rig.driver()
    let features = way.features(base)
    #expect(rig.negotiate(transport, features))
    let place = rig.place(packed: way.packed, scattered: scattered)
    let ring = place.ring(features, way.driver)
    rig.start(transport, place)
    for round in UInt8(0)..<20 where !rig.echo(transport, place, ring, indirect: way.indirect, seed: round) {
      return false
    }
    transport.status = []
    return true
  }

  @Test(
    "Negotiated and behind an IOMMU that knows its number: ring, indirect table and data are translated, page by page (R029, R034, R043)",
    arguments: RingKind.allDrivers)
  func translated(_ way: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(EchoDevice(), .platform, iommu: iommu)
    #expect(iommu.adoptions == [DeviceRig.requester])
    #expect(try run(rig, way, .platform, scattered: true))
    #expect(iommu.lookUps(by: DeviceRig.requester) > 0 && iommu.faults.isEmpty)
    #expect(rig.endpoint.counts.translated.misses > 0 && rig.endpoint.counts.physical.misses == 0)
  }

  @Test("Negotiated and in front of no IOMMU: addresses are physical (R005, R033)", arguments: RingKind.allDrivers)
  func flat(_ way: RingKind) throws {
    let rig = try DeviceRig(EchoDevice(), .platform)
    #expect(!rig.endpoint.isBehindIOMMU)
    #expect(try run(rig, way, .platform, scattered: false))
    #expect(rig.endpoint.counts.translated.misses > 0 && rig.endpoint.counts.physical.misses == 0)
  }

  @Test(
    "Not offered: addresses are physical past the IOMMU, which hears nothing (R006)", arguments: RingKind.allDrivers)
  func past(_ way: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(EchoDevice(), iommu: iommu)
    #expect(rig.endpoint.isBehindIOMMU)
    #expect(try run(rig, way, .plain, scattered: false))
    #expect(iommu.lookUps(by: DeviceRig.requester) == 0 && iommu.faults.isEmpty)
    #expect(rig.endpoint.counts.physical.misses > 0 && rig.endpoint.counts.translated.misses == 0)
  }

  @Test("Behind an IOMMU that lets it bypass, addresses are physical, and the translated path is taken")
  func bypass() throws {
    let rig = try DeviceRig(EchoDevice(), .platform)
    rig.endpoint.setIOMMU(PassThroughUnit())
    #expect(rig.endpoint.isBehindIOMMU)
    #expect(try run(rig, RingKind(indirect: true), .platform, scattered: false))
    #expect(rig.endpoint.counts.translated.misses > 0 && rig.endpoint.counts.physical.misses == 0)
  }

  @Test("An IOMMU that comes and goes counts while it is there, and gives the device up when it is gone (R032)")
  func late() throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(EchoDevice(), .platform)
    rig.endpoint.setIOMMU(iommu)
    let place = QueuePlace(rig.memory, size: 16, packed: false, scattered: true) {
      iommu.map(DeviceRig.requester, $0, byteCount: 4096, to: $1)
    }
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, place)
    #expect(rig.echo(transport, place, place.ring(.platform, .literal)))
    transport.status = []
    rig.endpoint.setIOMMU(nil)
    #expect(iommu.releases == [DeviceRig.requester] && !rig.endpoint.isBehindIOMMU)
    #expect(try run(rig, RingKind(packed: true), .platform, scattered: false))
  }

  @Test(
    "A ring that is not mapped makes the device need a reset, which is announced, and the next driver is served (R041, R042)"
  )
  func unmapped() throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(EchoDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    let place = rig.place(scattered: true)
    iommu.unmapAll(DeviceRig.requester)
    rig.start(transport, place)
    #expect(rig.interrupts.poll { rig.interrupts.isLineAsserted })
    #expect(transport.takeInterrupts() == 2 && transport.status.contains(.needsReset))
    #expect(iommu.faults.contains { $0.requester == DeviceRig.requester && $0.fault.reason == .unmapped })
    #expect(rig.endpoint.counts.translated.faults > 0)
    #expect(try run(rig, RingKind(), .platform, scattered: true))
    #expect(!transport.status.contains(.needsReset))
  }

  @Test(
    "A buffer that is not mapped is a fault of its request alone, and physical memory at its number is left alone (R034, R090)"
  )
  func unmappedBuffer() throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(EchoDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    let (place, ring) = try rig.running(transport, .platform, scattered: true)
    // 0x40_0000 is memory, and no address of the device's.
    let outside = LiteralMemory(rig.memory)
    outside.write([UInt8](repeating: 0x5a, count: 64), at: DMAAddress(0x40_0000))
    _ = ring.post([LiteralDescriptor(DMAAddress(0x40_0000), 64, writable: true)])
    ring.publish()
    transport.notify(0, data: 0)
    var used: [LiteralUsed] = []
    #expect(
      rig.interrupts.poll {
        used += ring.takeUsed()
        return !used.isEmpty
      })
    #expect(
      used.first?.length == 0 && outside.read(64, at: DMAAddress(0x40_0000)) == [UInt8](repeating: 0x5a, count: 64))
    #expect(iommu.faults.map(\.fault.address) == [DMAAddress(0x40_0000)])
    _ = transport.takeInterrupts()
    #expect(rig.echo(transport, place, ring))
  }

  @Test("A machine's IOMMU keeps its devices apart by the numbers it gave them (R034)")
  func numbers() throws {
    let iommu = PageIOMMU()
    let memory = try GuestMemory(byteCount: 16 << 20)
    var rigs: [(VirtioMMIODevice, InterruptLog, QueuePlace)] = []
    for number in [UInt16(1), 2] {
      let endpoint = DMAEndpoint(memory, requester: RequesterID(rawValue: number))
      endpoint.setIOMMU(iommu)
      let line = try InterruptLog()
      let device = try VirtioMMIODevice(
        EchoDevice(), .platform, at: endpoint, line: { line.setLine($0) }, log: .silent)
      // Only the first device's pages are mapped.
      let place = QueuePlace(memory, size: 16, packed: false, scattered: true) {
        iommu.map(RequesterID(rawValue: 1), $0, byteCount: 4096, to: $1)
      }
      rigs.append((device, line, place))
    }
    for (i, (device, line, place)) in rigs.enumerated() {
      let transport = try MMIODriverTransport(Window(device))
      let features = try transport.initialize(
        accepting: [], on: DriverPlatform(pages: GuestPages(memory, at: GuestAddress(8 << 20), byteCount: 1 << 20)))
      #expect(features.contains(.accessPlatform))
      let ring = place.ring(features, .literal)
      transport.enableQueue(0, place.layout)
      try? transport.begin()
      _ = ring.post([LiteralDescriptor(place.data, 16, writable: true)])
      ring.publish()
      transport.notify(0, data: 0)
      #expect(line.poll { line.isLineAsserted })
      #expect(transport.status.contains(.needsReset) == (i == 1))
    }
    #expect(iommu.faults.allSatisfy { $0.requester == RequesterID(rawValue: 2) } && !iommu.faults.isEmpty)
  }
}
