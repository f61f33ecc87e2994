import IOMMUInterface
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioServing
import VirtioTestKit

@Suite("Negotiation over MMIO, and what options make of a device", .timeLimit(.minutes(10))) struct NegotiationTests {
  private func choices(
    _ options: VirtioMMIOOptions, id: DeviceID = .entropy, behind: Bool = false
  ) throws(ConfigurationError) -> VirtioMMIOChoices {
    try VirtioMMIOChoices(options, id: id, isBehindIOMMU: behind)
  }

  @Test(
    "A driver that accepts the bit gets FEATURES_OK (R007); one that does not is refused, with VERSION_1 or without (R008, R009)"
  )
  func required() throws {
    let rig = try DeviceRig(EchoDevice(), .platform)
    let transport = try rig.driver()
    for features in [Features.plain, [], [.ringPacked]] {
      #expect(!rig.negotiate(transport, features))
      rig.start(transport, rig.place(scattered: false))
      #expect(transport.status == [.acknowledge, .driver])
      #expect(rig.window[0x044] == 0 && !rig.mmio.control.isRunning(0))
    }
    #expect(rig.negotiate(transport, .platform))
    #expect(rig.mmio.control.negotiatedFeatures == .platform)
    transport.accept(.plain)
    #expect(rig.mmio.control.negotiatedFeatures == .platform, "after FEATURES_OK nothing changes (R014)")
  }

  @Test("A bit that was not offered is not accepted (R011)")
  func notOffered() throws {
    let rig = try DeviceRig()
    #expect(try !rig.negotiate(rig.driver(), .platform))
    #expect(try !rig.negotiate(rig.driver(), Features.plain.union(.notificationConfigurationData)))
    #expect(try rig.negotiate(rig.driver(), Features.plain.union([.ringReset, .notificationData, .suspend])))
  }

  @Test("The bit with the legacy registers is refused, and the sentence says what to type (R023)")
  func legacyRefused() throws {
    let both = VirtioMMIOOptions.with {
      $0.iommuPlatform = .on
      $0.legacy = true
    }
    let error = #expect(throws: ConfigurationError.self) { _ = try choices(both) }
    #expect(error?.option == "iommu_platform=on,legacy=on" && error?.hint == "use legacy=off")
    #expect(throws: ConfigurationError.self) { _ = try DeviceRig(EchoDevice(), both) }
    #expect(throws: ConfigurationError.self) { _ = try choices(.old, id: .fileSystem) }
    #expect(try !choices(VirtioMMIOOptions(), id: .fileSystem).isLegacy)
  }

  @Test(
    "A back-end that cannot translate is refused the bit behind an IOMMU (R018), and never hears of it elsewhere (R019)"
  )
  func backend() throws {
    let options = VirtioMMIOOptions.with {
      $0.iommuPlatform = .on
      $0.backendTranslates = false
    }
    let error = #expect(throws: ConfigurationError.self) { _ = try choices(options, behind: true) }
    #expect(error?.description.contains("bypasses the IOMMU") == true)
    #expect(try choices(options).hidesAccessPlatform)
    let rig = try DeviceRig(EchoDevice(), options)
    let transport = try rig.driver()
    let (place, ring) = try rig.running(transport, .platform, scattered: false)
    #expect(rig.echo(transport, place, ring))
    // An IOMMU that comes later cannot be served: the device says so, and moves nothing.
    rig.endpoint.setIOMMU(PageIOMMU())
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, place)
    #expect(transport.status.contains(.needsReset))
  }

  @Test(
    "Left to the device, the bit is offered where something needs it and the registers can show it (R024)",
    arguments: [false, true], [false, true])
  func automatic(_ isBehind: Bool, _ isRestricted: Bool) throws {
    let options = VirtioMMIOOptions.with {
      $0.iommuPlatform = .auto
      $0.isRestricted = isRestricted
    }
    #expect(try choices(options, behind: isBehind).offersAccessPlatform == (isBehind || isRestricted))
    var old = options
    old.legacy = true
    let choice = try choices(old, behind: isBehind)
    #expect(!choice.offersAccessPlatform && choice.isLegacy)
    var weak = options
    weak.backendTranslates = false
    #expect(try choices(weak, behind: isBehind).offersAccessPlatform == (isRestricted && !isBehind))
  }

  @Test("Notifications with data name their queue in the lower half")
  func notificationData() throws {
    let rig = try DeviceRig(CounterDevice())
    let transport = try rig.driver()
    let features = Features.plain.union(.notificationData)
    #expect(rig.negotiate(transport, features))
    let place = rig.place(scattered: false)
    let ring = place.ring(features, .literal)
    transport.enableQueue(2, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    for round in UInt8(0)..<5 { #expect(rig.echo(transport, place, ring, queue: 2, seed: round)) }
    transport.notify(2, data: 0xffff)
    #expect(rig.echo(transport, place, ring, queue: 2))
  }

  @Test("A suspended device stands still and goes on where it was (R063)", arguments: [false, true])
  func suspend(_ packed: Bool) throws {
    let iommu = PageIOMMU()
    let rig = try DeviceRig(CounterDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    let features = Features.platform.union(packed ? [.suspend, .ringPacked] : .suspend)
    let (place, ring) = try rig.running(transport, features, scattered: true)
    for round in UInt8(0)..<5 { #expect(rig.echo(transport, place, ring, seed: round)) }
    transport.status = transport.status.union(.suspend)
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .suspend])
    iommu.unmapAll(DeviceRig.requester)
    transport.notify(0, data: 0)
    #expect(!rig.mmio.control.isRunning(0) && iommu.faults.isEmpty)
    _ = rig.place(packed: packed, scattered: true)
    transport.status = transport.status.union(.driverOK)
    for round in UInt8(5)..<12 { #expect(rig.echo(transport, place, ring, seed: round)) }
  }
}
