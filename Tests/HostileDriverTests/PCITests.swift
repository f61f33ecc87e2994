import DMA
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: virtio-pci", .timeLimit(.minutes(10))) struct PCITests {
  private static let pciLegacy = [Front(bus: .pciLegacy)]

  @Test("The device's configuration is accessed in widths that are not its fields'", arguments: Front.pci + pciLegacy)
  func widths(_ front: Front) throws {
    try attack(front.isLegacy ? "4.1.4.10-2" : "4.1.3.1-1", on: front) { _, victim in
      // 0x2000 is the device's part of the BAR; a legacy one begins behind the header.
      let start: UInt64 = front.isLegacy ? 20 : 0x2000
      for width in [1, 2, 3, 4, 8] {
        for offset in UInt64(0)..<100 {
          _ = victim.peek(start + offset, width)
          // Not the cache mode, whose change is a driver's right.
          if !(25...32).contains(offset) { victim.poke(start + offset, width, .max) }
        }
      }
      return .untouched
    }
  }

  @Test("Every byte of every virtio capability but the access window is written", arguments: Front.pci)
  func capabilities(_ front: Front) throws {
    try attack("4.1.4.1-5", on: front) { _, victim in
      var at = Int(victim.readConfigurationSpace(0x34, 1))
      var seen = 0
      while at != 0, seen < 32 {
        let isWindow = victim.readConfigurationSpace(at, 1) == 9 && victim.readConfigurationSpace(at + 3, 1) == 5
        let next = Int(victim.readConfigurationSpace(at + 1, 1))
        if victim.readConfigurationSpace(at, 1) == 9, !isWindow {
          let before = (0..<16).map { victim.readConfigurationSpace(at + $0, 1) }
          for i in 0..<16 { victim.writeConfigurationSpace(at + i, 1, 0xff) }
          guard before == (0..<16).map({ victim.readConfigurationSpace(at + $0, 1) }) else { throw Failure("a capability changed") }
        }
        at = next
        seen += 1
      }
      return .untouched
    }
  }

  @Test("Read-only fields of the common configuration are written", arguments: Front.pci)
  func readOnly(_ front: Front) throws {
    try attack("4.1.4.3.2-1", on: front) { _, victim in
      for (at, width) in [(UInt64(4), 4), (18, 2), (21, 1), (30, 2), (56, 2)] {
        let before = victim.peek(at, width)
        victim.poke(at, width, ~before)
        guard victim.peek(at, width) == before else { throw Failure("field \(at) changed") }
      }
      return .untouched
    }
  }

  @Test("Fields are accessed in widths that are not theirs, and behind the structure", arguments: Front.pci)
  func fieldWidths(_ front: Front) throws {
    try attack("4.1.4.3.2-1", on: front) { _, victim in
      // Reset and suspend are a driver's right: writes leave the status alone.
      for at in UInt64(0)..<72 where !(14...20).contains(at) {
        for width in [1, 2, 3, 8] where at % UInt64(width) != 0 || width == 3 || width == 8 && at < 32 { victim.poke(at, width, .max) }
        _ = victim.peek(at, 8)
      }
      for at in stride(from: UInt64(60), to: 4096, by: 4) { victim.poke(at, 4, .max) }
      return .untouched
    }
  }

  @Test("A packed queue's size is set to 0, a split queue's to what is no power of two, either to more than there is", arguments: Front.pci)
  func sizes(_ front: Front) throws {
    try attack(front.isPacked ? "4.1.4.3.2-2" : "4.1.4.3.2-3", on: front, Preparation(stage: .negotiated)) { life, victim in
      victim.select(0)
      victim.poke(24, 2, 16)
      for size in front.isPacked ? [0, 17, 0xffff] : [0, 3, 15, 17, 0x8000, 0xffff] as [UInt64] { victim.poke(24, 2, size) }
      guard victim.peek(24, 2) == 16 else { throw Failure("the size changed") }
      life.enable()
      life.goLive()
      return .untouched
    }
  }

  @Test("A queue is enabled before it is set up, and set up afterwards (R041)", arguments: Front.pci)
  func enabledFirst(_ front: Front) throws {
    try attack("4.1.4.3.2-4", on: front) { life, victim in
      victim.transport.status = []
      try life.negotiate()
      victim.select(0)
      victim.poke(28, 2, 1)
      life.enable()
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  @Test("The device is initialized again before its reset reads back as done", arguments: Front.all)
  func impatient(_ front: Front) throws {
    try attack("4.1.4.3.2-5", on: front) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      life.notify()
      let transport = victim.transport
      transport.status = []
      transport.status = [.acknowledge, .driver]
      transport.accept(life.features)
      if !front.isLegacy { transport.status = [.acknowledge, .driver, .featuresOK] }
      life.restartRing()
      life.enable()
      life.goLive()
      return .untouched
    }
  }

  @Test("queue_enable is written 0", arguments: Front.pci)
  func disabled(_ front: Front) throws {
    try attack("4.1.4.3.2-6", on: front) { _, victim in
      victim.select(0)
      for value in [0, 2, 0xffff] as [UInt64] { victim.poke(28, 2, value) }
      return .untouched
    }
  }

  private func window(_ front: Front, _ clause: String, _ places: [(bar: UInt32, offset: UInt32, length: UInt32)]) throws {
    try attack(clause, on: front) { _, victim in
      var at = Int(victim.readConfigurationSpace(0x34, 1))
      while at != 0, !(victim.readConfigurationSpace(at, 1) == 9 && victim.readConfigurationSpace(at + 3, 1) == 5) {
        at = Int(victim.readConfigurationSpace(at + 1, 1))
      }
      guard at != 0 else { throw Failure("there is no window") }
      for place in places {
        victim.writeConfigurationSpace(at + 4, 1, place.bar)
        victim.writeConfigurationSpace(at + 8, 4, place.offset)
        victim.writeConfigurationSpace(at + 12, 4, place.length)
        _ = victim.readConfigurationSpace(at + 16, 4)
        victim.writeConfigurationSpace(at + 16, 4, .max)
      }
      return .untouched
    }
  }

  @Test("The access window's offset is no multiple of its length", arguments: Front.pci)
  func windowAlignment(_ front: Front) throws {
    try window(front, "4.1.4.9.2-1", [(4, 1, 2), (4, 2, 4), (4, 21, 4), (4, 0x3001, 2), (4, 19, 2)])
  }

  @Test("The access window's data are used where they lead nowhere", arguments: Front.pci)
  func windowOutside(_ front: Front) throws {
    try window(front, "4.1.4.9.2-2", [
      (0, 0, 4), (1, 0, 4), (2, 0, 4), (6, 0, 4), (0xff, 0, 4), (4, .max, 1), (4, 0xffff_fffc, 4), (4, 0x4000, 4), (4, 0, 0), (4, 0, 3),
      (4, 0, 8), (4, 0, .max),
    ])
  }

  @Test("An event is mapped to a vector that does not exist, and nobody looks", arguments: Front.pci + pciLegacy)
  func vectors(_ front: Front) throws {
    try attack("4.1.5.1.2.2-2", "4.1.5.1.2.2-3", on: front) { _, victim in
      // A legacy function shows its vectors only while MSI-X is enabled; there are two.
      if front.isLegacy {
        let messages = [InterruptMessage](repeating: InterruptMessage(address: 0xfee0_0000, data: 0), count: 2)
        guard (victim.transport as? PCIDriverTransport)?.enableMSIX(messages) == true else { throw Failure("there is no MSI-X") }
      }
      let (queue, configuration): (UInt64, UInt64) = front.isLegacy ? (22, 20) : (26, 16)
      victim.select(0)
      for vector in [2, 3, 0x7ff, 0x800, 0xfffe] as [UInt64] {
        for at in [queue, configuration] {
          victim.poke(at, 2, 1)
          guard victim.peek(at, 2) == 1 else { throw Failure("a vector that exists was not taken") }
          victim.poke(at, 2, vector)
          guard victim.peek(at, 2) == 0xffff else { throw Failure("a vector that does not exist was taken") }
        }
      }
      return .untouched
    }
  }

  @Test("A legacy queue's page is behind the end of memory", arguments: pciLegacy)
  func legacyPage(_ front: Front) throws {
    try attack("4.1.5.1.3.1-1", on: front, Preparation(stage: .negotiated)) { life, victim in
      victim.select(0)
      victim.poke(8, 4, 0xffff_ffff)
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  @Test("A legacy driver writes fields in the other byte order", arguments: pciLegacy)
  func legacyByteOrder(_ front: Front) throws {
    try attack("4.1.4.10-1", on: front, Preparation(stage: .found)) { life, victim in
      victim.transport.status = []
      victim.transport.status = [.acknowledge, .driver]
      victim.select(0)
      victim.poke(8, 4, UInt64(UInt32(Life.firstBase / 4096).byteSwapped))
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  private func notify(_ front: Front, _ clauses: [String], _ features: Features = [], _ body: (Victim) -> Void) throws {
    for clause in clauses {
      let preparation = Preparation(features: features) { $0.offersNotificationData = true }
      try attack(clause, on: front, preparation) { life, victim in
        life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
        life.ring.publish()
        body(victim)
        life.notify()
        return try life.outcome(life.answer())
      }
    }
  }

  @Test("Notifications of 8, 32 and 64 bits where they have 16", arguments: Front.pci)
  func notificationWidth(_ front: Front) throws {
    try notify(front, ["4.1.5.2.1-1"]) { victim in
      for width in [1, 4, 8] { victim.poke(0x3000, width, 0) }
    }
  }

  @Test("Notifications of 16 bits where they have 32", arguments: Front.pci)
  func notificationHalf(_ front: Front) throws {
    try notify(front, ["4.1.5.2.1-2"], .notificationData) { victim in
      for width in [1, 2, 8] { victim.poke(0x3000, width, .max) }
    }
  }

  @Test("Notifications of queues that do not exist", arguments: Front.pci, [false, true])
  func notificationIndex(_ front: Front, _ data: Bool) throws {
    try notify(front, [data ? "4.1.5.2.1-4" : "4.1.5.2.1-3"], data ? .notificationData : []) { victim in
      for index in [1, 0x7fff, 0xffff, 0x1_0001, 0xffff_ffff] as [UInt64] { victim.poke(0x3000, data ? 4 : 2, index) }
      for at in [2, 4, 0x1000] as [UInt64] { victim.poke(0x3000 + at, 2, 0) }
    }
  }

  @Test("Notifications name the queue by its index where the device has another name for it", arguments: Front.pci, [false, true])
  func notificationName(_ front: Front, _ data: Bool) throws {
    try notify(front, [data ? "4.1.5.2.1-6" : "4.1.5.2.1-5"], data ? [.notificationConfigurationData, .notificationData] : .notificationConfigurationData) {
      victim in victim.poke(0x3000, data ? 4 : 2, 0)
    }
  }
}
