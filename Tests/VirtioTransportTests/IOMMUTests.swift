import DMA
import DriverDMA
import IOMMUInterface
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioIOMMU
import VirtioTestKit

/// The whole way: a driver maps by virtio-iommu's driver, over PCI, what a device behind it reaches, over PCI.
@Suite("virtio-iommu on a bus", .timeLimit(.minutes(10))) struct IOMMUTests {
  private func mapped(
    _ rig: IOMMURig, _ driver: VirtioIOMMUDriver, _ endpoint: RequesterID, flush: IOMMUMapper.Flush = .strict
  )
    throws -> (domain: WitnessedDomain, mapper: IOMMUMapper)
  {
    let domain = VirtioIOMMUDomain(driver, 1)
    try domain.attach(endpoint)
    let witnessed = WitnessedDomain(domain)
    let addresses = try domain.makeAddresses(for: [endpoint])
    return (witnessed, IOMMUMapper(witnessed, addresses: addresses, pages: rig.pages, flush: flush))
  }

  @Test(
    "Its own queues work where nothing is mapped and everything else faults; a device behind it does what its driver mapped (R036, R165, R171)",
    arguments: [IOMMUMapper.Flush.strict, .deferred(batch: 8)])
  func works(_ flush: IOMMUMapper.Flush) throws {
    let rig = try IOMMURig(bypass: .configured(false))
    let free = rig.pages.freeBytes
    let driver = try rig.driver()
    #expect(driver.features.isSuperset(of: [.accessPlatform, .version1]))
    #expect(rig.isRefused())
    #expect(try rig.faults(driver, 1).allSatisfy { $0.reason == .domain && $0.endpoint == 24 })
    let (_, mapper) = try mapped(rig, driver, rig.endpoint, flush: flush)
    let entropy = try rig.entropyDriver(mapper)
    #expect(entropy.features.contains(.accessPlatform))
    for _ in 0..<50 { #expect(try rig.works(entropy)) }
    #expect(try driver.receiveFaults().isEmpty)
    try entropy.stop()
    try mapper.flush()
    #expect(rig.iommu.mappings(of: 1) == 0 && mapper.lostBytes == 0)
    driver.stop()
    #expect(rig.iommu.domains.isEmpty)
    #expect(rig.pages.freeBytes == free, "the driver's memory came back")
  }

  @Test(
    "What is unmapped behind the driver's back is one fault, with endpoint, address and direction, and not a byte arrives (R092, R159, R169)"
  )
  func unmapped() throws {
    let rig = try IOMMURig(bypass: .configured(false))
    let driver = try rig.driver()
    let (domain, mapper) = try mapped(rig, driver, rig.endpoint)
    let entropy = try rig.entropyDriver(mapper)
    #expect(try rig.works(entropy))
    let page = try rig.pages.allocate(4096)
    let segments = [GuestSegment(page + 100, count: 64)]
    let tag = try entropy.submit(segments.span)
    let last = try #require(domain.last)
    try domain.unmap(last.address, count: last.count)
    #expect(try entropy.complete(tag).error != nil)
    let faults = try rig.faults(driver, 1)
    #expect(
      faults == [
        IOMMUFault(reason: .mapping, flags: [.write, .address], endpoint: 24, address: last.address.rawValue + 100)
      ])
    #expect(rig.memory.bytes(4096, at: page).allSatisfy { $0 == 0 })
    #expect(try rig.works(entropy), "the next request works")
    #expect(try driver.receiveFaults().isEmpty)
  }

  @Test(
    "Firmware works at physical addresses while bypass is 1; once an endpoint is attached the same addresses fault (R082, R096, R164)"
  )
  func firmware() throws {
    let rig = try IOMMURig(bypass: .configured(true))
    let early = try rig.entropyDriver()
    #expect(try rig.works(early))
    let driver = try rig.driver()
    #expect(try rig.works(early), "a driver that has started has attached nothing yet")
    try VirtioIOMMUDomain(driver, 1).attach(rig.endpoint)
    #expect(try rig.isRefused(early))
    #expect(try rig.faults(driver, 1).first?.reason == .mapping)
    // A bypass domain lets it through with any value of the field.
    try driver.setBypass(false)
    try VirtioIOMMUDomain(driver, 2, bypass: true).attach(rig.endpoint)
    #expect(try rig.works(rig.entropyDriver()))
  }

  @Test(
    "A reset of the device ends attachments and leaves bypass alone; a reset of the machine sets it as at power-on (R070, R163, R166)",
    arguments: [false, true])
  func resets(initial: Bool) throws {
    let rig = try IOMMURig(bypass: .configured(initial))
    #expect(rig.bypassField == (initial ? 1 : 0))
    let driver = try rig.driver()
    let domain = VirtioIOMMUDomain(driver, 1)
    try domain.attach(rig.endpoint)
    try domain.map(DMAAddress(0), to: GuestAddress(0), count: 4096, permissions: .readWrite)
    try driver.setBypass(!initial)
    driver.stop()
    #expect(rig.iommu.domains.isEmpty && rig.iommu.attachments == [rig.endpoint: nil])
    #expect(rig.bypassField == (initial ? 0 : 1))
    if initial {
      #expect(rig.isRefused())
    } else {
      #expect(try rig.works(rig.entropyDriver()))
    }
    rig.bus.reset()
    #expect(rig.bypassField == (initial ? 1 : 0))
  }

  @Test("The field bypass can be written from FEATURES_OK on, and not before (R163)")
  func accepted() throws {
    let rig = try IOMMURig(bypass: .configured(false))
    let transport = try rig.transport(RequesterID(bus: 0, device: 1))
    transport.status = []
    transport.status = [.acknowledge, .driver]
    transport.accept([.version1, .accessPlatform, .iommuMapUnmap, .iommuBypassConfig])
    transport.writeConfiguration(at: 36, from: [1].span)
    #expect(rig.bypassField == 0)
    transport.status = [.acknowledge, .driver, .featuresOK]
    transport.writeConfiguration(at: 36, from: [1].span)
    #expect(rig.bypassField == 1)
    transport.status = []
    transport.writeConfiguration(at: 36, from: [0].span)
    #expect(rig.bypassField == 1, "nothing is negotiated any more")
  }

  @Test("With VIRTIO_IOMMU_F_BYPASS, endpoints pass from the moment it is accepted until a reset (R164)")
  func oldBypass() throws {
    let rig = try IOMMURig(bypass: .accepted)
    #expect(rig.isRefused())
    let driver = try rig.driver()
    #expect(driver.features.contains(.iommuBypass))
    #expect(try rig.works(rig.entropyDriver()))
    driver.stop()
    #expect(rig.isRefused())
  }

  @Test(
    "A function that is plugged in later can be probed and attached without a reset, and reaches nothing before (R067)")
  func hotPlug() throws {
    let rig = try IOMMURig(bypass: .configured(false)) {
      $0.reservedMemory = [IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi)]
    }
    let driver = try rig.driver()
    let (_, first) = try mapped(rig, driver, rig.endpoint)
    let entropy = try rig.entropyDriver(first)
    #expect(try rig.works(entropy))
    let next = RequesterID(bus: 0, device: 4)
    #expect(throws: VirtioIOMMUDriverError.refused(.noEntry)) { try driver.attach(next, to: 1) }
    try rig.replug(PCISlot(4))
    #expect(rig.iommu.domains.isEmpty, "the last endpoint of the domain went")
    #expect(throws: VirtioIOMMUDriverError.refused(.noEntry)) { try driver.probe(rig.endpoint) }
    #expect(try driver.probe(next) == [IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi)])
    #expect(rig.isRefused(at: next))
    let (_, mapper) = try mapped(rig, driver, next)
    #expect(try rig.works(rig.entropyDriver(mapper, at: next)))
  }
}
