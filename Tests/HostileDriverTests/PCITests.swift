import IOMMUInterface
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioTestKit

@Suite("A hostile driver: virtio-pci", .timeLimit(.minutes(10))) struct PCITests {
  private static let pciLegacy = [Transport(bus: .pciLegacy)]

  @Test(
    "A packed queue's size is set to 0, a split queue's to what is no power of two, either to more than there is",
    arguments: [Transport].pci)
  func sizes(_ transport: Transport) throws {
    try attack(transport.isPacked ? "4.1.4.3.2-2" : "4.1.4.3.2-3", on: transport, Preparation(stage: .negotiated)) {
      session, target in
      target.select(0)
      target.poke(24, 2, 16)
      for size in transport.isPacked ? [0, 17, 0xffff] : [0, 3, 15, 17, 0x8000, 0xffff] as [UInt64] {
        target.poke(24, 2, size)
      }
      guard target.peek(24, 2) == 16 else { throw Failure("the size changed") }
      session.enable()
      session.goLive()
      return .untouched
    }
  }

  /// A row: the access window leads to each of these places, and is used there.
  private static func window(
    _ sentence: String, _ clause: String, _ places: [(bar: UInt32, offset: UInt32, length: UInt32)]
  ) -> Attack {
    .ignored(sentence, clause, on: .pci) { _, target in
      var at = Int(target.readConfigurationSpace(0x34, 1))
      while at != 0, !(target.readConfigurationSpace(at, 1) == 9 && target.readConfigurationSpace(at + 3, 1) == 5) {
        at = Int(target.readConfigurationSpace(at + 1, 1))
      }
      guard at != 0 else { throw Failure("there is no window") }
      for place in places {
        target.writeConfigurationSpace(at + 4, 1, place.bar)
        target.writeConfigurationSpace(at + 8, 4, place.offset)
        target.writeConfigurationSpace(at + 12, 4, place.length)
        _ = target.readConfigurationSpace(at + 16, 4)
        target.writeConfigurationSpace(at + 16, 4, .max)
      }
    }
  }

  /// A row: a request is made available, and told of in this way before the right one.
  private static func notification(
    _ sentence: String, _ clause: String, _ features: Features = [], _ wrong: @escaping @Sendable (Target) -> Void
  ) -> Attack {
    Attack(sentence, clause, on: .pci, features: features, options: { $0.offersNotificationData = true }) {
      session, target in
      session.postRead()
      session.ring.publish()
      wrong(target)
      session.notify()
      return try session.outcome(session.answer())
    }
  }
  private static func notifiesOthers(_ clause: String, _ features: Features = [], width: Int) -> Attack {
    notification("Notifications of \(8 * width) bits are of queues that do not exist", clause, features) { target in
      for index in [1, 0x7fff, 0xffff, 0x1_0001, 0xffff_ffff] as [UInt64] { target.poke(0x3000, width, index) }
      for at in [2, 4, 0x1000] as [UInt64] { target.poke(0x3000 + at, 2, 0) }
    }
  }
  private static func misnames(_ clause: String, _ features: Features, width: Int) -> Attack {
    notification(
      "Notifications of \(8 * width) bits name the queue by its index where the device has another name for it", clause,
      features.union(.notificationConfigurationData)
    ) { $0.poke(0x3000, width, 0) }
  }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R041)
    Attack("A queue is enabled before it is set up, and set up afterwards", "4.1.4.3.2-4", on: .pci) {
      session, target in
      target.driver.status = []
      try session.negotiate()
      target.select(0)
      target.poke(28, 2, 1)
      session.enable()
      session.goLive()
      return session.stoppedOrNot()
    },
    window(
      "The access window's offset is no multiple of its length", "4.1.4.9.2-1",
      [(4, 1, 2), (4, 2, 4), (4, 21, 4), (4, 0x3001, 2), (4, 19, 2)]),
    window(
      "The access window's data are used where they lead nowhere", "4.1.4.9.2-2",
      [
        (0, 0, 4), (1, 0, 4), (2, 0, 4), (6, 0, 4), (0xff, 0, 4), (4, .max, 1), (4, 0xffff_fffc, 4), (4, 0x4000, 4),
        (4, 0, 0), (4, 0, 3), (4, 0, 8), (4, 0, .max),
      ]),
    notification("Notifications of 8, 32 and 64 bits where they have 16", "4.1.5.2.1-1") { target in
      for width in [1, 4, 8] { target.poke(0x3000, width, 0) }
    },
    notification("Notifications of 16 bits where they have 32", "4.1.5.2.1-2", .notificationData) { target in
      for width in [1, 2, 8] { target.poke(0x3000, width, .max) }
    },
    notifiesOthers("4.1.5.2.1-3", width: 2), notifiesOthers("4.1.5.2.1-4", .notificationData, width: 4),
    misnames("4.1.5.2.1-5", [], width: 2), misnames("4.1.5.2.1-6", .notificationData, width: 4),
    .ignored("Every byte of every virtio capability but the access window is written", "4.1.4.1-5", on: .pci) {
      _, target in
      var at = Int(target.readConfigurationSpace(0x34, 1))
      var seen = 0
      while at != 0, seen < 32 {
        let isWindow = target.readConfigurationSpace(at, 1) == 9 && target.readConfigurationSpace(at + 3, 1) == 5
        let next = Int(target.readConfigurationSpace(at + 1, 1))
        if target.readConfigurationSpace(at, 1) == 9, !isWindow {
          let before = (0..<16).map { target.readConfigurationSpace(at + $0, 1) }
          for i in 0..<16 { target.writeConfigurationSpace(at + i, 1, 0xff) }
          guard before == (0..<16).map({ target.readConfigurationSpace(at + $0, 1) }) else {
            throw Failure("a capability changed")
          }
        }
        at = next
        seen += 1
      }
    },
    .ignored("Read-only fields of the common configuration are written", "4.1.4.3.2-1", on: .pci) { _, target in
      for (at, width) in [(UInt64(4), 4), (18, 2), (21, 1), (30, 2), (56, 2)] {
        let before = target.peek(at, width)
        target.poke(at, width, ~before)
        guard target.peek(at, width) == before else { throw Failure("field \(at) changed") }
      }
    },
    .ignored("Fields are accessed in widths that are not theirs, and behind the structure", "4.1.4.3.2-1", on: .pci) {
      _, target in
      // Reset and suspend are a driver's right: writes leave the status alone.
      for at in UInt64(0)..<72 where !(14...20).contains(at) {
        for width in [1, 2, 3, 8] where at % UInt64(width) != 0 || width == 3 || width == 8 && at < 32 {
          target.poke(at, width, .max)
        }
        _ = target.peek(at, 8)
      }
      for at in stride(from: UInt64(60), to: 4096, by: 4) { target.poke(at, 4, .max) }
    },
    .ignored("The device is initialized again before its reset reads back as done", "4.1.4.3.2-5", on: .all) {
      session, target in
      session.beginRead()
      let driver = target.driver
      driver.status = []
      driver.status = [.acknowledge, .driver]
      driver.accept(session.features)
      if !target.transport.isLegacy { driver.status = [.acknowledge, .driver, .featuresOK] }
      session.restartRing()
      session.enable()
      session.goLive()
    },
    .ignored("queue_enable is written 0", "4.1.4.3.2-6", on: .pci) { _, target in
      target.select(0)
      for value in [0, 2, 0xffff] as [UInt64] { target.poke(28, 2, value) }
    },
    .ignored(
      "An event is mapped to a vector that does not exist, and the register is not read back", "4.1.5.1.2.2-2",
      "4.1.5.1.2.2-3", on: .pci + pciLegacy
    ) { _, target in
      // A legacy function shows its vectors only while MSI-X is enabled; there are two.
      if target.transport.isLegacy {
        let messages = [InterruptMessage](repeating: InterruptMessage(address: 0xfee0_0000, data: 0), count: 2)
        guard (target.driver as? PCIDriverTransport)?.enableMSIX(messages) == true else {
          throw Failure("there is no MSI-X")
        }
      }
      let (queue, configuration): (UInt64, UInt64) = target.transport.isLegacy ? (22, 20) : (26, 16)
      target.select(0)
      for vector in [2, 3, 0x7ff, 0x800, 0xfffe] as [UInt64] {
        for at in [queue, configuration] {
          target.poke(at, 2, 1)
          guard target.peek(at, 2) == 1 else { throw Failure("a vector that exists was not taken") }
          target.poke(at, 2, vector)
          guard target.peek(at, 2) == 0xffff else { throw Failure("a vector that does not exist was taken") }
        }
      }
    },
    Attack("A legacy queue's page is behind the end of memory", "4.1.5.1.3.1-1", on: pciLegacy, stage: .negotiated) {
      session, target in
      target.select(0)
      target.poke(8, 4, 0xffff_ffff)
      session.goLive()
      return session.stoppedOrNot()
    },
    Attack("A legacy driver writes fields in the other byte order", "4.1.4.10-1", on: pciLegacy, stage: .found) {
      session, target in
      target.meet()
      target.select(0)
      target.poke(8, 4, UInt64(UInt32(Session.firstBase / 4096).byteSwapped))
      session.goLive()
      return session.stoppedOrNot()
    },
  ]
}
