import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: split rings", .timeLimit(.minutes(10))) struct SplitRingTests {
  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let next: UInt16 = 1
  private static let write: UInt16 = 2
  private static let indirect: UInt16 = 4

  /// Writes descriptors of the ring by hand: header, data and status of a read, then `change` edits them; shows head 0.
  private static func raw(_ session: Session, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
    let ring = try session.split
    session.writeHeader(0, sector: 0)
    session.target.allow(session.data, 512)
    ring.setDescriptor(0, address: session.header, length: 16, flags: Self.next, next: 1)
    ring.setDescriptor(1, address: session.data, length: 512, flags: Self.next | Self.write, next: 2)
    ring.setDescriptor(2, address: session.status, length: 1, flags: Self.write, next: 0)
    try change(ring)
    ring.offer(0)
    return try session.outcome(session.show())
  }

  /// An indirect table with the same request, and `change`.
  private static func table(_ session: Session, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
    try raw(session) { ring in
      ring.setDescriptor(at: session.table, address: session.header, length: 16, flags: Self.next, next: 1)
      ring.setDescriptor(
        at: session.table + 16, address: session.data, length: 512, flags: Self.next | Self.write, next: 2)
      ring.setDescriptor(at: session.table + 32, address: session.status, length: 1, flags: Self.write, next: 0)
      ring.setDescriptor(0, address: session.table, length: 48, flags: Self.indirect, next: 0)
      try change(ring)
    }
  }

  @Test("A next field and an available entry name no descriptor", arguments: [Transport].split, [false, true])
  func outside(_ transport: Transport, _ isHead: Bool) throws {
    try attack("2.7.5.2-2", on: transport) { session, _ in
      if isHead {
        let ring = try session.split
        ring.offer(session.layout.size)
        return try session.outcome(session.show())
      }
      return try Self.raw(session) {
        $0.setDescriptor(1, address: session.data, length: 512, flags: Self.next | Self.write, next: 0xffff)
      }
    }
  }

  @Test(
    "With IN_ORDER, an indirect table is not in sequence; one that goes in a circle ends, too",
    arguments: [Transport].split, [false, true])
  func tableOrder(_ transport: Transport, _ isLoop: Bool) throws {
    try attack("2.7.5.3.1-5", on: transport, Preparation(features: [.inOrder, .indirectDescriptors])) { session, _ in
      try Self.table(session) { ring in
        ring.setDescriptor(at: session.table, address: session.header, length: 16, flags: Self.next, next: 2)
        ring.setDescriptor(
          at: session.table + 32, address: session.data, length: 512, flags: Self.next | Self.write,
          next: isLoop ? 2 : 1)
        ring.setDescriptor(at: session.table + 16, address: session.status, length: 1, flags: Self.write, next: 0)
      }
    }
  }

  @Test(
    "avail_event is believed where it was not negotiated, or the lowest bit of the flags where it was",
    arguments: [Transport].split, [false, true])
  func believed(_ transport: Transport, _ events: Bool) throws {
    try attack(events ? "2.7.10.1-4" : "2.7.10.1-2", on: transport, Preparation(features: events ? .eventIndex : [])) {
      session, target in
      guard session.works() else { return .noAnswer }
      let ring = try session.split
      if events {
        // This driver reads that no notification is wanted, with any value that the device leaves there.
        target.literal.publish(le16: 1, at: session.layout.deviceArea)
      }
      session.postRead()
      ring.publish()
      let isWanted = events ? ring.usedFlags & 1 == 0 : ring.availableEvent == ring.availableIndex &- 1
      guard !isWanted else { throw Failure("this attack has not begun: the driver would notify") }
      // Believing that, it does not notify. The next notification, for any reason, tells the device.
      session.notify()
      return try session.outcome(session.answer())
    }
  }

  private static let attacks: [Attack] = [
    Attack("A legacy queue lies where there is no memory", "2.7.2-1", on: .legacy, stage: .negotiated) {
      session, target in
      // Its descriptors are the last page of memory, and its used ring is behind it.
      let end = Target.memoryStart + UInt64(Target.memorySize)
      target.driver.enableQueue(0, QueueLayout(legacyAt: end - 4096, size: session.layout.size))
      session.goLive()
      return session.stoppedOrNot()
    },
    Attack("A legacy ring is written in the other byte order", "2.7.3-1", on: .legacy) { session, target in
      session.postRead()
      target.literal.publish(le16: 0x0100, at: session.layout.driverArea + 2)
      session.notify()
      return session.stoppedOrNot()
    },
    Attack("A device-readable descriptor comes after a device-writable one", "2.7.4.2-1", on: .split) { session, _ in
      try raw(session) { ring in
        ring.setDescriptor(0, address: session.data, length: 512, flags: Self.next | Self.write, next: 1)
        ring.setDescriptor(1, address: session.header, length: 16, flags: Self.next, next: 2)
      }
    },
    Attack("A chain is longer than 2^32 bytes", "2.7.5.2-1", on: .split) { session, _ in
      try raw(session) { ring in
        ring.setDescriptor(1, address: session.foreign, length: .max, flags: Self.next | Self.write, next: 3)
        ring.setDescriptor(3, address: session.foreign, length: .max, flags: Self.next | Self.write, next: 2)
      }
    },
    Attack("A chain bites its tail", "2.7.5.2-2", on: .split) { session, _ in
      try raw(session) {
        $0.setDescriptor(1, address: session.data, length: 512, flags: Self.next | Self.write, next: 1)
      }
    },
    Attack(
      "With IN_ORDER, descriptors do not follow one another in the table", "2.7.5.2-3", on: .split, features: .inOrder
    ) { session, target in
      let ring = try session.split
      session.writeHeader(0, sector: 0)
      target.allow(session.data, 512)
      let last = Int(session.layout.size) - 1
      ring.setDescriptor(0, address: session.header, length: 16, flags: Self.next, next: UInt16(last))
      ring.setDescriptor(
        last, address: session.data, length: 512, flags: Self.next | Self.write, next: UInt16(last - 2))
      ring.setDescriptor(last - 2, address: session.status, length: 1, flags: Self.write, next: 0)
      ring.offer(0)
      return try session.outcome(session.show())
    },
    Attack("An indirect table is used that was not negotiated", "2.7.5.3.1-1", on: .split) { session, _ in
      try table(session) { _ in }
    },
    Attack("An indirect table is in an indirect table", "2.7.5.3.1-2", on: .split, features: .indirectDescriptors) {
      session, _ in
      try table(session) {
        $0.setDescriptor(at: session.table + 16, address: session.table, length: 48, flags: Self.indirect, next: 0)
      }
    },
    Attack("An indirect table is longer than the queue", "2.7.5.3.1-3", on: .split, features: .indirectDescriptors) {
      session, target in
      try table(session) { ring in
        // A sector in pieces of 16 bytes: 34 descriptors, of a queue that has 16.
        target.allow(session.data, 512)
        for i in 0..<32 {
          ring.setDescriptor(
            at: session.table + 16 * (i + 1), address: session.data + 16 * i, length: 16, flags: Self.next | Self.write,
            next: UInt16(i + 2))
        }
        ring.setDescriptor(at: session.table + 16 * 33, address: session.status, length: 1, flags: Self.write, next: 0)
        ring.setDescriptor(0, address: session.table, length: 16 * 34, flags: Self.indirect, next: 0)
      }
    },
    Attack("A descriptor has INDIRECT and NEXT", "2.7.5.3.1-4", on: .split, features: .indirectDescriptors) {
      session, _ in
      try table(session) {
        $0.setDescriptor(0, address: session.table, length: 48, flags: Self.indirect | Self.next, next: 1)
      }
    },
    Attack("The available index goes backwards", "2.7.6.1-1", on: .split) { session, _ in
      guard session.works() else { return .noAnswer }
      let ring = try session.split
      ring.setAvailableIndex(ring.availableIndex &- 1)
      session.notify()
      return session.stoppedOrNot()
    },
    Attack("The available ring's flags are neither 0 nor 1", "2.7.7.1-1", on: .split) { session, _ in
      try session.split.setAvailableFlags(0xfffe)
      return try session.read()
    },
    Attack("With an event index, the available ring's flags are not 0", "2.7.7.1-2", on: .split, features: .eventIndex)
    { session, _ in
      try session.split.setAvailableFlags(0xffff)
      return try session.read()
    },
    .ignored(
      "The used ring's flags and index are not 0 when the queue starts", "2.7.10.1-1", on: .split, stage: .negotiated
    ) { session, target in
      target.literal.write(le16: 0xffff, at: session.layout.deviceArea)
      session.enable()
      session.goLive()
    },
    Attack("The available index is shown before the entry and its descriptors are written", "2.7.13.3.1-1", on: .split)
    { session, _ in
      let ring = try session.split
      ring.setAvailableIndex(ring.availableIndex &+ 1)
      session.notify()
      // What it finds is a descriptor of nothing.
      return session.stoppedOrNot()
    },
    Attack("The available index jumps further than the ring is long", "2.7.13.3.1-1", on: .split) { session, _ in
      try session.split.setAvailableIndex(session.layout.size + 1)
      session.notify()
      return session.stoppedOrNot()
    },
  ]
}

extension Session {
  /// Waits for the device to give up, or for an invalid answer.
  func stoppedOrNot() -> Outcome {
    switch answer() {
    case .stopped: .stopped
    case .used: .untouched
    case .nothing: .noAnswer
    }
  }
}
