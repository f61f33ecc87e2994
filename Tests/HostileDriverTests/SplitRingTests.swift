import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioIOMMU
import VirtioTestKit

@Suite("A hostile driver: split rings", .timeLimit(.minutes(10))) struct SplitRingTests {
  private static let next: UInt16 = 1
  private static let write: UInt16 = 2
  private static let indirect: UInt16 = 4

  /// Writes descriptors of the ring by hand: header, data and status of a read, then `change` edits them; shows head 0.
  private func raw(_ session: Session, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
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
  private func table(_ session: Session, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
    try raw(session) { ring in
      ring.setDescriptor(at: session.table, address: session.header, length: 16, flags: Self.next, next: 1)
      ring.setDescriptor(
        at: session.table + 16, address: session.data, length: 512, flags: Self.next | Self.write, next: 2)
      ring.setDescriptor(at: session.table + 32, address: session.status, length: 1, flags: Self.write, next: 0)
      ring.setDescriptor(0, address: session.table, length: 48, flags: Self.indirect, next: 0)
      try change(ring)
    }
  }

  @Test("The areas are not aligned", arguments: Transport.modernSplit, 0..<3)
  func misaligned(_ transport: Transport, _ area: Int) throws {
    try attack("2.7.1-1", on: transport, Preparation(stage: .negotiated)) { session, target in
      var layout = session.layout
      switch area {
      case 0: layout.descriptorArea = layout.descriptorArea + 8
      case 1: layout.driverArea = layout.driverArea + 1
      default: layout.deviceArea = layout.deviceArea + 2
      }
      target.driver.enableQueue(0, layout)
      session.goLive()
      return session.stoppedOrNot()
    }
  }

  @Test("A legacy queue lies where there is no memory", arguments: Transport.legacy)
  func legacyLayout(_ transport: Transport) throws {
    try attack("2.7.2-1", on: transport, Preparation(stage: .negotiated)) { session, target in
      // Its descriptors are the last page of memory, and its used ring is behind it.
      let end = Target.memoryStart + UInt64(Target.memorySize)
      target.driver.enableQueue(0, QueueLayout(legacyAt: end - 4096, size: session.layout.size))
      session.goLive()
      return session.stoppedOrNot()
    }
  }

  @Test("A legacy ring is written in the other byte order", arguments: Transport.legacy)
  func byteOrder(_ transport: Transport) throws {
    try attack("2.7.3-1", on: transport) { session, target in
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      target.literal.publish(le16: 0x0100, at: session.layout.driverArea + 2)
      session.notify()
      return session.stoppedOrNot()
    }
  }

  @Test("A device-readable descriptor comes after a device-writable one", arguments: Transport.split)
  func order(_ transport: Transport) throws {
    try attack("2.7.4.2-1", on: transport) { session, _ in
      try raw(session) { ring in
        ring.setDescriptor(0, address: session.data, length: 512, flags: Self.next | Self.write, next: 1)
        ring.setDescriptor(1, address: session.header, length: 16, flags: Self.next, next: 2)
      }
    }
  }

  @Test("A chain is longer than 2^32 bytes", arguments: Transport.split)
  func tooLarge(_ transport: Transport) throws {
    try attack("2.7.5.2-1", on: transport) { session, _ in
      try raw(session) { ring in
        ring.setDescriptor(1, address: session.foreign, length: .max, flags: Self.next | Self.write, next: 3)
        ring.setDescriptor(3, address: session.foreign, length: .max, flags: Self.next | Self.write, next: 2)
      }
    }
  }

  @Test("A chain bites its tail", arguments: Transport.split)
  func loop(_ transport: Transport) throws {
    try attack("2.7.5.2-2", on: transport) { session, _ in
      try raw(session) {
        $0.setDescriptor(1, address: session.data, length: 512, flags: Self.next | Self.write, next: 1)
      }
    }
  }

  @Test("With IN_ORDER, descriptors do not follow one another in the table", arguments: Transport.split)
  func inOrder(_ transport: Transport) throws {
    try attack("2.7.5.2-3", on: transport, Preparation(features: .inOrder)) { session, target in
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
    }
  }

  @Test("A next field and an available entry name no descriptor", arguments: Transport.split, [false, true])
  func outside(_ transport: Transport, _ isHead: Bool) throws {
    try attack("2.7.5.2-2", on: transport) { session, _ in
      if isHead {
        let ring = try session.split
        ring.offer(session.layout.size)
        return try session.outcome(session.show())
      }
      return try raw(session) {
        $0.setDescriptor(1, address: session.data, length: 512, flags: Self.next | Self.write, next: 0xffff)
      }
    }
  }

  @Test("An indirect table is used that was not negotiated", arguments: Transport.split)
  func notNegotiated(_ transport: Transport) throws {
    try attack("2.7.5.3.1-1", on: transport) { session, _ in try table(session) { _ in } }
  }

  @Test("An indirect table is in an indirect table", arguments: Transport.split)
  func nested(_ transport: Transport) throws {
    try attack("2.7.5.3.1-2", on: transport, Preparation(features: .indirectDescriptors)) { session, _ in
      try table(session) {
        $0.setDescriptor(at: session.table + 16, address: session.table, length: 48, flags: Self.indirect, next: 0)
      }
    }
  }

  @Test("An indirect table is longer than the queue", arguments: Transport.split)
  func tooLong(_ transport: Transport) throws {
    try attack("2.7.5.3.1-3", on: transport, Preparation(features: .indirectDescriptors)) { session, target in
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
    }
  }

  @Test("A descriptor has INDIRECT and NEXT", arguments: Transport.split)
  func both(_ transport: Transport) throws {
    try attack("2.7.5.3.1-4", on: transport, Preparation(features: .indirectDescriptors)) { session, _ in
      try table(session) {
        $0.setDescriptor(0, address: session.table, length: 48, flags: Self.indirect | Self.next, next: 1)
      }
    }
  }

  @Test(
    "With IN_ORDER, an indirect table is not in sequence; one that goes in a circle ends, too",
    arguments: Transport.split, [false, true])
  func tableOrder(_ transport: Transport, _ isLoop: Bool) throws {
    try attack("2.7.5.3.1-5", on: transport, Preparation(features: [.inOrder, .indirectDescriptors])) { session, _ in
      try table(session) { ring in
        ring.setDescriptor(at: session.table, address: session.header, length: 16, flags: Self.next, next: 2)
        ring.setDescriptor(
          at: session.table + 32, address: session.data, length: 512, flags: Self.next | Self.write,
          next: isLoop ? 2 : 1)
        ring.setDescriptor(at: session.table + 16, address: session.status, length: 1, flags: Self.write, next: 0)
      }
    }
  }

  @Test("The available index goes backwards", arguments: Transport.split)
  func backwards(_ transport: Transport) throws {
    try attack("2.7.6.1-1", on: transport) { session, _ in
      guard session.works() else { return .noAnswer }
      let ring = try session.split
      ring.setAvailableIndex(ring.availableIndex &- 1)
      session.notify()
      return session.stoppedOrNot()
    }
  }

  @Test("The available ring's flags are neither 0 nor 1", arguments: Transport.split)
  func flags(_ transport: Transport) throws {
    try attack("2.7.7.1-1", on: transport) { session, _ in
      try session.split.setAvailableFlags(0xfffe)
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      return try session.outcome(session.show())
    }
  }

  @Test("With an event index, the available ring's flags are not 0", arguments: Transport.split)
  func flagsWithEvents(_ transport: Transport) throws {
    try attack("2.7.7.1-2", on: transport, Preparation(features: .eventIndex)) { session, _ in
      try session.split.setAvailableFlags(0xffff)
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      return try session.outcome(session.show())
    }
  }

  @Test("The used ring's flags and index are not 0 when the queue starts", arguments: Transport.split)
  func usedFlags(_ transport: Transport) throws {
    try attack("2.7.10.1-1", on: transport, Preparation(stage: .negotiated)) { session, target in
      target.literal.write(le16: 0xffff, at: session.layout.deviceArea)
      session.enable()
      session.goLive()
      return .untouched
    }
  }

  @Test(
    "Buffers are made available, and nobody notifies although the device wants it", arguments: Transport.split,
    [false, true])
  func silent(_ transport: Transport, _ events: Bool) throws {
    let clause = events ? "2.7.10.1-5" : "2.7.10.1-3"
    try attack(clause, "2.7.13.4.1-1", on: transport, Preparation(features: events ? .eventIndex : [])) { session, _ in
      guard session.works() else { return .noAnswer }
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      session.ring.publish()
      // It may have seen the buffer itself, or needs a notification after all.
      session.notify()
      return try session.outcome(session.answer())
    }
  }

  @Test(
    "avail_event is believed where it was not negotiated, or the lowest bit of the flags where it was",
    arguments: Transport.split, [false, true])
  func believed(_ transport: Transport, _ events: Bool) throws {
    try attack(events ? "2.7.10.1-4" : "2.7.10.1-2", on: transport, Preparation(features: events ? .eventIndex : [])) {
      session, target in
      guard session.works() else { return .noAnswer }
      let ring = try session.split
      if events {
        // This driver reads that no notification is wanted, with any value that the device leaves there.
        target.literal.publish(le16: 1, at: session.layout.deviceArea)
      }
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      ring.publish()
      let isWanted = events ? ring.usedFlags & 1 == 0 : ring.availableEvent == ring.availableIndex &- 1
      guard !isWanted else { throw Failure("this attack has not begun: the driver would notify") }
      // Believing that, it does not notify. The next notification, for any reason, tells the device.
      session.notify()
      return try session.outcome(session.answer())
    }
  }

  @Test("The available index is shown before the entry and its descriptors are written", arguments: Transport.split)
  func early(_ transport: Transport) throws {
    try attack("2.7.13.3.1-1", on: transport) { session, _ in
      let ring = try session.split
      ring.setAvailableIndex(ring.availableIndex &+ 1)
      session.notify()
      // What it finds is a descriptor of nothing.
      return session.stoppedOrNot()
    }
  }

  @Test("The available index jumps further than the ring is long", arguments: Transport.split)
  func jump(_ transport: Transport) throws {
    try attack("2.7.13.3.1-1", on: transport) { session, _ in
      try session.split.setAvailableIndex(session.layout.size + 1)
      session.notify()
      return session.stoppedOrNot()
    }
  }
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
