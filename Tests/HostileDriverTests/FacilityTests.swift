import MachineKit
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: configuration, queues of either format and their resets", .timeLimit(.minutes(10)))
struct FacilityTests {
  @Test(
    "Fields are read in halves, across each other and all at once, and the generation is not looked at",
    arguments: [Transport].all)
  func torn(_ transport: Transport) throws {
    try attack("2.5.1-1", on: transport) { _, target in
      for (offset, count) in [(0, 8), (0, 1), (3, 2), (6, 4), (0, 96), (1, 95)] { target.read(offset, count) }
      return .untouched
    }
  }

  @Test(
    "Fields of features that are not there, and what is behind the configuration, are read and written",
    arguments: [Transport].all)
  func absent(_ transport: Transport) throws {
    try attack("2.5.1-2", on: transport) { _, target in
      for offset in [48, 60, 72, 95, 96, 100, 255, 4000, 1 << 20, Int(Int32.max)] {
        target.read(offset, 4)
        target.driver.writeConfiguration(at: offset, from: [0xff, 0xff, 0xff, 0xff].span)
      }
      return .untouched
    }
  }

  @Test(
    "The device's configuration is accessed in widths that are not its fields'", arguments: [Transport].all)
  func widths(_ transport: Transport) throws {
    let (clause, start): (String, UInt64) =
      switch transport.bus {
      case .pci: ("4.1.3.1-1", 0x2000)
      // Behind the header.
      case .pciLegacy: ("4.1.4.10-2", 20)
      case .mmio, .mmioLegacy: ("4.2.2.2-5", 0x100)
      }
    try attack(clause, on: transport) { _, target in
      for width in [1, 2, 3, 4, 8] {
        for offset in UInt64(0)..<100 {
          _ = target.peek(start + offset, width)
          // Not the cache mode, whose change is a driver's right.
          if !(25...32).contains(offset) { target.poke(start + offset, width, .max) }
        }
      }
      return .untouched
    }
  }

  @Test("The areas are not aligned", arguments: [Transport].modern, 0..<3)
  func misaligned(_ transport: Transport, _ area: Int) throws {
    try attack(transport.isPacked ? "2.8.11-1" : "2.7.1-1", on: transport, Preparation(stage: .negotiated)) {
      session, target in
      var layout = session.layout
      switch area {
      case 0: layout.descriptorArea = layout.descriptorArea + 8
      case 1: layout.driverArea = layout.driverArea + (transport.isPacked ? 2 : 1)
      default: layout.deviceArea = layout.deviceArea + 2
      }
      target.driver.enableQueue(0, layout)
      session.goLive()
      return session.stoppedOrNot()
    }
  }

  @Test(
    "Buffers are made available, and nobody notifies although the device wants it", arguments: [Transport].all,
    [false, true])
  func silent(_ transport: Transport, _ events: Bool) throws {
    let clauses =
      transport.isPacked ? ["2.8.21.3.1-1"] : [events ? "2.7.10.1-5" : "2.7.10.1-3", "2.7.13.4.1-1"]
    try attack(clauses, on: transport, Preparation(features: events ? .eventIndex : [])) { session, _ in
      guard session.works() else { return .noAnswer }
      session.postRead()
      session.ring.publish()
      // It may have seen the buffer itself, or needs a notification after all.
      session.notify()
      return try session.outcome(session.answer())
    }
  }

  private static var ringReset: Preparation { Preparation(features: .ringReset) }

  @Test(
    "A queue that is reset is used again without looking whether that was done (R062)", arguments: [Transport].modern)
  func unverified(_ transport: Transport) throws {
    try attack(
      "2.6.1.1.2-1", transport.isPCI ? "4.1.4.3.2-7" : "4.2.2.2-17", on: transport,
      Preparation(stage: .live, features: .ringReset)
    ) { session, target in
      session.beginRead()
      target.select(0)
      target.poke(transport.isPCI ? 58 : 0x0c0, transport.isPCI ? 2 : 4, 1)
      session.restartRing()
      session.enable()
      return .untouched
    }
  }

  @Test("A queue that was reset is enabled without being set up (R041, R062)", arguments: [Transport].modern)
  func notSetUp(_ transport: Transport) throws {
    try attack("2.6.1.2.2-1", on: transport, Self.ringReset) { session, target in
      target.driver.resetQueue(0)
      target.select(0)
      target.poke(transport.isPCI ? 28 : 0x044, transport.isPCI ? 2 : 4, 1)
      return session.stoppedOrNot()
    }
  }

  @Test(
    "A queue is reset that does not run, one that does not exist, and any without the feature",
    arguments: [Transport].modern, [false, true])
  func nonsense(_ transport: Transport, _ negotiated: Bool) throws {
    try attack("2.6.1.1.2-1", on: transport, Preparation(features: negotiated ? .ringReset : [])) { session, target in
      for index in [1, 7, 0xffff] { target.driver.resetQueue(index) }
      if negotiated {
        target.driver.resetQueue(0)
        target.driver.resetQueue(0)
        session.restartRing()
        session.enable()
      } else {
        target.select(0)
        target.poke(transport.isPCI ? 58 : 0x0c0, transport.isPCI ? 2 : 4, 1)
      }
      return .untouched
    }
  }
}

extension Target {
  /// Resets the device, and waits until it says that this is done.
  func reset() throws {
    driver.status = []
    guard interrupts.poll({ driver.status.isEmpty }) else { throw Wedged("the device does not come out of its reset") }
  }

  /// As far as DRIVER.
  func meet() {
    driver.status = []
    driver.status = [.acknowledge, .driver]
  }

  /// Looks that features do not get FEATURES_OK.
  func checkRefusal(of features: Features) throws {
    meet()
    driver.accept(features)
    driver.status = [.acknowledge, .driver, .featuresOK]
    guard !driver.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
  }

  /// Reads bytes of the device's configuration as they come.
  func read(_ offset: Int, _ count: Int) { _ = driver.configuration(count, at: offset) }

  /// Selects a queue.
  func select(_ index: Int) {
    switch transport.bus {
    case .pci: poke(22, 2, UInt64(index))
    case .pciLegacy: poke(14, 2, UInt64(index))
    case .mmio, .mmioLegacy: poke(0x030, 4, UInt64(index))
    }
  }
}

extension Session {
  /// The ring as it is before its first buffer.
  func restartRing() { ring = makeLiteralRing(layout, features: features, in: target.literal) }
}
