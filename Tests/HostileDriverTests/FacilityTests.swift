import DMA
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: configuration and queue resets", .timeLimit(.minutes(10))) struct FacilityTests {
  @Test("Fields are read in halves, across each other and all at once, and the generation is not looked at", arguments: Front.all)
  func torn(_ front: Front) throws {
    try attack("2.5.1-1", on: front) { _, victim in
      for (offset, count) in [(0, 8), (0, 1), (3, 2), (6, 4), (0, 96), (1, 95)] { victim.read(offset, count) }
      return .untouched
    }
  }

  @Test("Fields of features that are not there, and what is behind the configuration, are read and written", arguments: Front.all)
  func absent(_ front: Front) throws {
    try attack("2.5.1-2", on: front) { _, victim in
      for offset in [48, 60, 72, 95, 96, 100, 255, 4000, 1 << 20, Int(Int32.max)] {
        victim.read(offset, 4)
        victim.transport.writeConfiguration(at: offset, from: [0xff, 0xff, 0xff, 0xff].span)
      }
      return .untouched
    }
  }

  private static var ringReset: Preparation { Preparation(features: .ringReset) }

  @Test("A queue that is reset is used again without looking whether that was done (R062)", arguments: Front.modern)
  func unverified(_ front: Front) throws {
    try attack(
      "2.6.1.1.2-1", front.isPCI ? "4.1.4.3.2-7" : "4.2.2.2-17", on: front, Preparation(stage: .live, features: .ringReset)
    ) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      life.notify()
      victim.select(0)
      victim.poke(front.isPCI ? 58 : 0x0c0, front.isPCI ? 2 : 4, 1)
      life.restartRing()
      life.enable()
      return .untouched
    }
  }

  @Test("A queue that was reset is enabled without being set up (R041, R062)", arguments: Front.modern)
  func notSetUp(_ front: Front) throws {
    try attack("2.6.1.2.2-1", on: front, Self.ringReset) { life, victim in
      victim.transport.resetQueue(0)
      victim.select(0)
      victim.poke(front.isPCI ? 28 : 0x044, front.isPCI ? 2 : 4, 1)
      return life.stoppedOrNot()
    }
  }

  @Test("A queue is reset that does not run, one that does not exist, and any without the feature", arguments: Front.modern, [false, true])
  func nonsense(_ front: Front, _ negotiated: Bool) throws {
    try attack("2.6.1.1.2-1", on: front, Preparation(features: negotiated ? .ringReset : [])) { life, victim in
      for index in [1, 7, 0xffff] { victim.transport.resetQueue(index) }
      if negotiated {
        victim.transport.resetQueue(0)
        victim.transport.resetQueue(0)
        life.restartRing()
        life.enable()
      } else {
        victim.select(0)
        victim.poke(front.isPCI ? 58 : 0x0c0, front.isPCI ? 2 : 4, 1)
      }
      return .untouched
    }
  }
}

extension Victim {
  /// Reads bytes of the device's configuration as they come.
  func read(_ offset: Int, _ count: Int) {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    transport.readConfiguration(at: offset, into: &span)
  }

  /// Selects a queue.
  func select(_ index: Int) {
    switch front.bus {
    case .pci: poke(22, 2, UInt64(index))
    case .pciLegacy: poke(14, 2, UInt64(index))
    case .mmio, .mmioLegacy: poke(0x030, 4, UInt64(index))
    }
  }
}

extension Life {
  /// The ring as it is before its first buffer.
  func restartRing() { ring = makeLiteralRing(layout, features: features, in: victim.literal) }
}
