import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("Negotiation over PCI", .timeLimit(.minutes(10))) struct NegotiationTests {
  @Test(
    "The bit is bit 1 of feature word 1, offered when asked for and bit 34 is not its doing (R001, R002, R003, R004)")
  func offer() throws {
    for platform in [OnOffAuto.off, .on] {
      let rig = try FunctionRig(EchoDevice(), .with { $0.iommuPlatform = platform })
      let transport = try rig.driver()
      // The common configuration at the start of BAR 4.
      rig.access.writeBAR(4, at: 0, width: 4, 1)
      let word = rig.access.readBAR(4, at: 4, width: 4)
      #expect(word >> 1 & 1 == (platform == .on ? 1 : 0))
      #expect(word >> 2 & 1 == 1, "the echo device offers packed rings either way")
      #expect(transport.deviceFeatures.contains(.accessPlatform) == (platform == .on))
      rig.access.writeBAR(4, at: 0, width: 4, 4)
      #expect(rig.access.readBAR(4, at: 4, width: 4) == 0)
    }
    #expect(try FunctionRig().driver().deviceFeatures.contains(.accessPlatform) == false)
  }

  @Test("A driver that accepts the bit gets FEATURES_OK and reads both back (R007)")
  func accepted() throws {
    let rig = try FunctionRig(EchoDevice(), .platform)
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    rig.access.writeBAR(4, at: 8, width: 4, 1)
    #expect(rig.access.readBAR(4, at: 12, width: 4) == 3)
    #expect(rig.function.control.negotiatedFeatures == .platform)
  }

  @Test(
    "Without the offered bit FEATURES_OK does not stick, with VERSION_1 or without, and no queue can be used (R008, R009)",
    arguments: [Features.plain, [], [.ringPacked]])
  func refused(_ accepted: Features) throws {
    let rig = try FunctionRig(EchoDevice(), .platform)
    let transport = try rig.driver()
    #expect(!rig.negotiate(transport, accepted))
    #expect(transport.status == [.acknowledge, .driver])
    let place = rig.place(scattered: false)
    rig.start(transport, place)
    #expect(transport.status == [.acknowledge, .driver])
    #expect(rig.access.readBAR(4, at: 28, width: 2) == 0)
    #expect(!rig.function.control.isRunning(0))
    // It may still come to its senses.
    transport.accept(.platform)
    transport.status = [.acknowledge, .driver, .featuresOK]
    #expect(transport.status.contains(.featuresOK))
  }

  @Test("VERSION_1 alone is missing: refused as well")
  func versionRequired() throws {
    let rig = try FunctionRig()
    let transport = try rig.driver()
    #expect(!rig.negotiate(transport, []))
    #expect(rig.negotiate(transport, .plain))
  }

  @Test(
    "A bit that was not offered, the platform's bit or another, is not accepted (R011)", arguments: [33, 41, 60, 100])
  func notOffered(_ bit: Int) throws {
    let rig = try FunctionRig()
    let transport = try rig.driver()
    #expect(!rig.negotiate(transport, Features.plain.union(Features(bit: bit))))
    #expect(rig.function.control.negotiatedFeatures == [])
  }

  @Test("Feature words written after FEATURES_OK have no effect (R014)")
  func final() throws {
    let rig = try FunctionRig(EchoDevice(), .platform)
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    transport.accept([])
    #expect(rig.function.control.negotiatedFeatures == .platform)
    #expect(transport.status.contains(.featuresOK))
  }

  @Test("A reset forgets what was accepted; the same set is accepted again, and none is refused again (R015, R016)")
  func reset() throws {
    let rig = try FunctionRig(EchoDevice(), .platform)
    let transport = try rig.driver()
    for _ in 0..<3 {
      #expect(rig.negotiate(transport, .platform))
      transport.status = []
      rig.access.writeBAR(4, at: 8, width: 4, 1)
      #expect(rig.access.readBAR(4, at: 12, width: 4) == 0)
      // FEATURES_OK without a word about features.
      transport.status = [.acknowledge, .driver, .featuresOK]
      #expect(!transport.status.contains(.featuresOK))
    }
  }

  @Test("What is offered stays the same when an IOMMU comes and goes (R017)", arguments: [OnOffAuto.auto, .off, .on])
  func constant(_ choice: OnOffAuto) throws {
    let rig = try FunctionRig(EchoDevice(), .with { $0.iommuPlatform = choice })
    let transport = try rig.driver()
    let offered = transport.deviceFeatures
    rig.bus.setIOMMU(PageIOMMU())
    #expect(transport.deviceFeatures == offered)
    rig.bus.setIOMMU(nil)
    transport.status = []
    #expect(transport.deviceFeatures == offered)
  }

  @Test("Neither virtual functions nor administration queues are offered: their capabilities are not there (R022)")
  func notThere() throws {
    for options in [VirtioPCIOptions(), .platform] {
      let features = try FunctionRig(EchoDevice(), options).driver().deviceFeatures
      #expect(!features.contains(.singleRootIOV) && !features.contains(.administrationQueue))
    }
  }

  @Test("Status bits stay until a reset, and FAILED ends everything but a reset")
  func bits() throws {
    let rig = try FunctionRig()
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .plain))
    transport.status = [.acknowledge]
    #expect(transport.status == [.acknowledge, .driver, .featuresOK])
    transport.status = [.failed]
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .failed])
    #expect(rig.negotiate(transport, .plain))
  }
}
