import DMA
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioServing
import VirtioTestKit

@Suite("Negotiation, and queues and devices that stop", .timeLimit(.minutes(10))) struct NegotiationTests {
  @Test(
    "The bit is bit 1 of feature word 1, offered when asked for, and bit 34 is not its doing (R001, R002, R003, R004)",
    arguments: Place.allCases, [OnOffAuto.off, .on])
  func offer(_ place: Place, _ choice: OnOffAuto) throws {
    let (rig, transport) = try place.driven(EchoDevice(), choice)
    let words = (UInt32(0)..<6).map(rig.offeredWord)
    #expect(words[1] & 1 == 1 && words[1] >> 1 & 1 == (choice == .on ? 1 : 0))
    #expect(words[1] >> 2 & 1 == 1, "the echo device offers packed rings either way")
    #expect(words[4...] == [0, 0] && rig.offeredWord(.max) == 0)
    #expect(transport.deviceFeatures.contains(.accessPlatform) == (choice == .on))
    // Bits for what is not there: virtual functions, administration queues, names for queues (R022).
    #expect(words[1] & (1 << 5 | 1 << 7 | 1 << 9) == 0)
    #expect(transport.deviceFeatures.isDisjoint(with: [.singleRootIOV, .administrationQueue]))
  }

  @Test("A device left alone does not offer the bit (R003)")
  func leftAlone() throws {
    #expect(try !FunctionRig().driver().deviceFeatures.contains(.accessPlatform))
    #expect(try !BoardRig().driver().deviceFeatures.contains(.accessPlatform))
  }

  @Test(
    "A driver that accepts the bit gets FEATURES_OK and reads both back (R007); what it writes afterwards has no effect (R014)",
    arguments: Place.allCases)
  func accepted(_ place: Place) throws {
    let (rig, transport) = try place.driven()
    #expect(rig.negotiate(transport, .platform))
    #expect(rig.acceptedWord(1) == 3 && rig.control.negotiatedFeatures == .platform)
    for features in [Features.plain, []] {
      transport.accept(features)
      #expect(rig.control.negotiatedFeatures == .platform && transport.status.contains(.featuresOK))
    }
  }

  @Test(
    "Without the offered bit FEATURES_OK does not stick, with VERSION_1 or without, and no queue can be used (R008, R009)",
    arguments: Place.allCases, [Features.plain, [], [.ringPacked]])
  func refused(_ place: Place, _ accepted: Features) throws {
    let (rig, transport) = try place.driven()
    #expect(!rig.negotiate(transport, accepted))
    #expect(transport.status == [.acknowledge, .driver])
    rig.start(transport, rig.place(scattered: false))
    #expect(transport.status == [.acknowledge, .driver])
    #expect(rig.enableRegister == 0 && !rig.control.isRunning(0))
    // It may still come to its senses.
    transport.accept(.platform)
    transport.status = [.acknowledge, .driver, .featuresOK]
    #expect(transport.status.contains(.featuresOK))
  }

  @Test("VERSION_1 alone is missing: refused as well", arguments: Place.allCases)
  func versionRequired(_ place: Place) throws {
    let (rig, transport) = try place.driven(EchoDevice(), .off)
    #expect(!rig.negotiate(transport, []))
    #expect(rig.negotiate(transport, .plain))
  }

  @Test(
    "A bit that was not offered, the platform's bit or another, is not accepted (R011)", arguments: Place.allCases,
    [33, 39, 41, 60, 100])
  func notOffered(_ place: Place, _ bit: Int) throws {
    let (rig, transport) = try place.driven(EchoDevice(), .off)
    #expect(!rig.negotiate(transport, Features.plain.union(Features(bit: bit))))
    #expect(rig.control.negotiatedFeatures == [])
    #expect(rig.negotiate(transport, transport.deviceFeatures))
  }

  @Test("A board's device offers what a function only offers when it is told to")
  func offeredOnBoards() throws {
    let rig = try BoardRig()
    #expect(try rig.negotiate(rig.driver(), Features.plain.union([.ringReset, .notificationData, .suspend])))
  }

  @Test(
    "A reset forgets what was accepted; the same set is accepted again, and none is refused again (R015, R016)",
    arguments: Place.allCases)
  func reset(_ place: Place) throws {
    let (rig, transport) = try place.driven()
    for _ in 0..<3 {
      #expect(rig.negotiate(transport, .platform))
      transport.status = []
      #expect(rig.acceptedWord(1) == 0)
      // FEATURES_OK without a word about features.
      transport.status = [.acknowledge, .driver, .featuresOK]
      #expect(!transport.status.contains(.featuresOK))
    }
  }

  @Test(
    "What is offered stays the same when an IOMMU comes and goes (R017)", arguments: Place.allCases,
    [OnOffAuto.auto, .off, .on])
  func constant(_ place: Place, _ choice: OnOffAuto) throws {
    let (rig, transport) = try place.driven(EchoDevice(), choice)
    let offered = transport.deviceFeatures
    rig.setIOMMU(PageIOMMU())
    #expect(transport.deviceFeatures == offered)
    rig.setIOMMU(nil)
    transport.status = []
    #expect(transport.deviceFeatures == offered)
  }

  @Test("Status bits stay until a reset, and FAILED ends everything but a reset", arguments: Place.allCases)
  func bits(_ place: Place) throws {
    let (rig, transport) = try place.driven(EchoDevice(), .off)
    #expect(rig.negotiate(transport, .plain))
    transport.status = [.acknowledge]
    #expect(transport.status == [.acknowledge, .driver, .featuresOK])
    transport.status = [.failed]
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .failed])
    #expect(rig.negotiate(transport, .plain))
  }

  @Test(
    "A back-end that cannot translate, without an IOMMU in front: offered, negotiated, and it never sees the bit (R019)",
    arguments: Place.allCases)
  func backendAlone(_ place: Place) throws {
    let device = TestDevice {
      $0.writable.copy(EchoDevice.answer(to: $0.readable.bytes(), count: $0.writable.byteCount).span, to: 0)
    }
    let (rig, transport) = try place.driven(device, backendTranslates: false)
    let (queue, ring) = try rig.running(transport, .platform, scattered: false)
    #expect(rig.echo(transport, queue, ring))
    #expect(device.negotiated == [.plain])
    // An IOMMU that comes later cannot be served: the device says so, and moves nothing.
    rig.setIOMMU(PageIOMMU())
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, queue)
    #expect(transport.status.contains(.needsReset))
  }

  @Test(
    "A queue that is reset lets go and forgets its registers, others go on, and it runs anew where the driver puts it then (R062)",
    arguments: Place.allCases)
  func ringReset(_ place: Place) throws {
    let iommu = PageIOMMU()
    let (rig, transport) = try place.driven(CounterDevice(), iommu: iommu)
    let features = Features.platform.union(.ringReset)
    let (queue, first) = try rig.running(transport, features, scattered: true)
    #expect(rig.echo(transport, queue, first))
    transport.resetQueue(0)
    #expect(!rig.control.isRunning(0) && rig.enableRegister == 0 && rig.resetRegister == 0)
    #expect(rig.control.queue(0)?.descriptorArea == 0)
    if let rig = rig as? FunctionRig {
      #expect(rig.access.readBAR(4, at: 26, width: 2) == 0xffff && rig.access.readBAR(4, at: 32, width: 4) == 0)
    }
    #expect(transport.status.contains(.driverOK))
    // Elsewhere: 16 pages further up nothing was mapped before.
    iommu.unmapAll(rig.requester)
    let other = rig.place(8, scattered: true)
    let ring = other.ring(features, .literal)
    if let transport = transport as? PCIDriverTransport { #expect(transport.setVector(1, ofQueue: 0)) }
    transport.enableQueue(0, other.layout)
    #expect(rig.echo(transport, other, ring))
    // Without the feature the register does nothing.
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, other)
    rig.resetRegister = 1
    #expect(rig.control.isRunning(0))
  }

  @Test(
    "A suspended device stands still, keeps its place, and tells afterwards what changed meanwhile (R063)",
    arguments: Place.allCases, [false, true])
  func suspend(_ place: Place, _ packed: Bool) throws {
    let iommu = PageIOMMU()
    let device = CounterDevice()
    let (rig, transport) = try place.driven(device, iommu: iommu)
    let features = RingKind(packed: packed).features(.platform.union(.suspend))
    let (queue, ring) = try rig.running(transport, features, scattered: true)
    for round in UInt8(0)..<5 { #expect(rig.echo(transport, queue, ring, seed: round)) }
    transport.status = transport.status.union(.suspend)
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .suspend])
    _ = (transport as? MMIODriverTransport)?.takeInterrupts()
    let (told, edges) = (rig.interrupts.data.count, rig.interrupts.edges)
    device.set(7)
    transport.writeConfiguration(at: 8, from: [1, 0, 0, 0].span)
    #expect(device.drivers == 0)
    // With everything unmapped a single look at the ring would be a fault.
    iommu.unmapAll(rig.requester)
    transport.notify(0, data: 0)
    #expect(!rig.control.isRunning(0) && iommu.faults.isEmpty)
    #expect(rig.interrupts.data.count == told && rig.interrupts.edges == edges)
    _ = rig.place(16, packed: packed, scattered: true)
    transport.status = transport.status.union(.driverOK)
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .driverOK])
    #expect(rig.causesOfChange(transport) & 2 != 0 && [nil, 0x20].contains(rig.interrupts.data.dropFirst(told).first))
    for round in UInt8(5)..<12 { #expect(rig.echo(transport, queue, ring, seed: round)) }
    // Without the feature the bit is ignored.
    #expect(rig.negotiate(transport, features.subtracting(.suspend)))
    rig.start(transport, queue)
    transport.status = transport.status.union(.suspend)
    #expect(transport.status.contains(.driverOK) && !transport.status.contains(.suspend))
  }
}
