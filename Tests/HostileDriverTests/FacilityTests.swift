import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioIOMMU
import VirtioTestKit

@Suite("A hostile driver: configuration and queue resets", .timeLimit(.minutes(10))) struct FacilityTests {
  @Test(
    "Fields are read in halves, across each other and all at once, and the generation is not looked at",
    arguments: Transport.all)
  func torn(_ transport: Transport) throws {
    try attack("2.5.1-1", on: transport) { _, target in
      for (offset, count) in [(0, 8), (0, 1), (3, 2), (6, 4), (0, 96), (1, 95)] { target.read(offset, count) }
      return .untouched
    }
  }

  @Test(
    "Fields of features that are not there, and what is behind the configuration, are read and written",
    arguments: Transport.all)
  func absent(_ transport: Transport) throws {
    try attack("2.5.1-2", on: transport) { _, target in
      for offset in [48, 60, 72, 95, 96, 100, 255, 4000, 1 << 20, Int(Int32.max)] {
        target.read(offset, 4)
        target.driver.writeConfiguration(at: offset, from: [0xff, 0xff, 0xff, 0xff].span)
      }
      return .untouched
    }
  }

  private static var ringReset: Preparation { Preparation(features: .ringReset) }

  @Test("A queue that is reset is used again without looking whether that was done (R062)", arguments: Transport.modern)
  func unverified(_ transport: Transport) throws {
    try attack(
      "2.6.1.1.2-1", transport.isPCI ? "4.1.4.3.2-7" : "4.2.2.2-17", on: transport,
      Preparation(stage: .live, features: .ringReset)
    ) { session, target in
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      session.ring.publish()
      session.notify()
      target.select(0)
      target.poke(transport.isPCI ? 58 : 0x0c0, transport.isPCI ? 2 : 4, 1)
      session.restartRing()
      session.enable()
      return .untouched
    }
  }

  @Test("A queue that was reset is enabled without being set up (R041, R062)", arguments: Transport.modern)
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
    arguments: Transport.modern, [false, true])
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
