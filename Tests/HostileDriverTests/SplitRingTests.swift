import DMA
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: split rings", .timeLimit(.minutes(10))) struct SplitRingTests {
  private static let next: UInt16 = 1
  private static let write: UInt16 = 2
  private static let indirect: UInt16 = 4

  /// Writes descriptors of the ring by hand: header, data and status of a read, then whatever `change` makes of them; shows head 0.
  private func raw(_ life: Life, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
    let ring = try life.split
    life.writeHeader(0, sector: 0)
    life.victim.allow(life.data, 512)
    ring.setDescriptor(0, address: life.header, length: 16, flags: Self.next, next: 1)
    ring.setDescriptor(1, address: life.data, length: 512, flags: Self.next | Self.write, next: 2)
    ring.setDescriptor(2, address: life.status, length: 1, flags: Self.write, next: 0)
    try change(ring)
    ring.offer(0)
    return try life.outcome(life.show())
  }

  /// An indirect table with the same request, and `change`.
  private func table(_ life: Life, _ change: (LiteralSplitRing) throws -> Void) throws -> Outcome {
    try raw(life) { ring in
      ring.setDescriptor(at: life.table, address: life.header, length: 16, flags: Self.next, next: 1)
      ring.setDescriptor(at: life.table + 16, address: life.data, length: 512, flags: Self.next | Self.write, next: 2)
      ring.setDescriptor(at: life.table + 32, address: life.status, length: 1, flags: Self.write, next: 0)
      ring.setDescriptor(0, address: life.table, length: 48, flags: Self.indirect, next: 0)
      try change(ring)
    }
  }

  @Test("The areas are not aligned", arguments: Front.modernSplit, 0..<3)
  func misaligned(_ front: Front, _ area: Int) throws {
    try attack("2.7.1-1", on: front, Preparation(stage: .negotiated)) { life, victim in
      var layout = life.layout
      switch area {
      case 0: layout.descriptorArea = layout.descriptorArea + 8
      case 1: layout.driverArea = layout.driverArea + 1
      default: layout.deviceArea = layout.deviceArea + 2
      }
      victim.transport.enableQueue(0, layout)
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  @Test("A legacy queue lies where there is no memory", arguments: Front.legacy)
  func legacyLayout(_ front: Front) throws {
    try attack("2.7.2-1", on: front, Preparation(stage: .negotiated)) { life, victim in
      // Its descriptors are the last page of memory, and its used ring is behind it.
      let end = Victim.memoryStart + UInt64(Victim.memorySize)
      victim.transport.enableQueue(0, QueueLayout(legacyAt: end - 4096, size: life.layout.size))
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  @Test("A legacy ring is written in the other byte order", arguments: Front.legacy)
  func byteOrder(_ front: Front) throws {
    try attack("2.7.3-1", on: front) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      victim.literal.publish(le16: 0x0100, at: life.layout.driverArea + 2)
      life.notify()
      return life.stoppedOrNot()
    }
  }

  @Test("A device-readable descriptor comes after a device-writable one", arguments: Front.split)
  func order(_ front: Front) throws {
    try attack("2.7.4.2-1", on: front) { life, _ in
      try raw(life) { ring in
        ring.setDescriptor(0, address: life.data, length: 512, flags: Self.next | Self.write, next: 1)
        ring.setDescriptor(1, address: life.header, length: 16, flags: Self.next, next: 2)
      }
    }
  }

  @Test("A chain is longer than 2^32 bytes", arguments: Front.split)
  func tooLarge(_ front: Front) throws {
    try attack("2.7.5.2-1", on: front) { life, _ in
      try raw(life) { ring in
        ring.setDescriptor(1, address: life.foreign, length: .max, flags: Self.next | Self.write, next: 3)
        ring.setDescriptor(3, address: life.foreign, length: .max, flags: Self.next | Self.write, next: 2)
      }
    }
  }

  @Test("A chain bites its tail", arguments: Front.split)
  func loop(_ front: Front) throws {
    try attack("2.7.5.2-2", on: front) { life, _ in
      try raw(life) { $0.setDescriptor(1, address: life.data, length: 512, flags: Self.next | Self.write, next: 1) }
    }
  }

  @Test("With IN_ORDER, descriptors do not follow one another in the table", arguments: Front.split)
  func inOrder(_ front: Front) throws {
    try attack("2.7.5.2-3", on: front, Preparation(features: .inOrder)) { life, victim in
      let ring = try life.split
      life.writeHeader(0, sector: 0)
      victim.allow(life.data, 512)
      let last = Int(life.layout.size) - 1
      ring.setDescriptor(0, address: life.header, length: 16, flags: Self.next, next: UInt16(last))
      ring.setDescriptor(last, address: life.data, length: 512, flags: Self.next | Self.write, next: UInt16(last - 2))
      ring.setDescriptor(last - 2, address: life.status, length: 1, flags: Self.write, next: 0)
      ring.offer(0)
      return try life.outcome(life.show())
    }
  }

  @Test("A next field and an available entry name no descriptor", arguments: Front.split, [false, true])
  func outside(_ front: Front, _ isHead: Bool) throws {
    try attack("2.7.5.2-2", on: front) { life, _ in
      if isHead {
        let ring = try life.split
        ring.offer(life.layout.size)
        return try life.outcome(life.show())
      }
      return try raw(life) { $0.setDescriptor(1, address: life.data, length: 512, flags: Self.next | Self.write, next: 0xffff) }
    }
  }

  @Test("An indirect table is used that was not negotiated", arguments: Front.split)
  func notNegotiated(_ front: Front) throws {
    try attack("2.7.5.3.1-1", on: front) { life, _ in try table(life) { _ in } }
  }

  @Test("An indirect table is in an indirect table", arguments: Front.split)
  func nested(_ front: Front) throws {
    try attack("2.7.5.3.1-2", on: front, Preparation(features: .indirectDescriptors)) { life, _ in
      try table(life) { $0.setDescriptor(at: life.table + 16, address: life.table, length: 48, flags: Self.indirect, next: 0) }
    }
  }

  @Test("An indirect table is longer than the queue", arguments: Front.split)
  func tooLong(_ front: Front) throws {
    try attack("2.7.5.3.1-3", on: front, Preparation(features: .indirectDescriptors)) { life, victim in
      try table(life) { ring in
        // A sector in pieces of 16 bytes: 34 descriptors, of a queue that has 16.
        victim.allow(life.data, 512)
        for i in 0..<32 {
          ring.setDescriptor(
            at: life.table + 16 * (i + 1), address: life.data + 16 * i, length: 16, flags: Self.next | Self.write, next: UInt16(i + 2))
        }
        ring.setDescriptor(at: life.table + 16 * 33, address: life.status, length: 1, flags: Self.write, next: 0)
        ring.setDescriptor(0, address: life.table, length: 16 * 34, flags: Self.indirect, next: 0)
      }
    }
  }

  @Test("A descriptor has INDIRECT and NEXT", arguments: Front.split)
  func both(_ front: Front) throws {
    try attack("2.7.5.3.1-4", on: front, Preparation(features: .indirectDescriptors)) { life, _ in
      try table(life) { $0.setDescriptor(0, address: life.table, length: 48, flags: Self.indirect | Self.next, next: 1) }
    }
  }

  @Test("With IN_ORDER, an indirect table is not in sequence; one that goes in a circle ends, too", arguments: Front.split, [false, true])
  func tableOrder(_ front: Front, _ isLoop: Bool) throws {
    try attack("2.7.5.3.1-5", on: front, Preparation(features: [.inOrder, .indirectDescriptors])) { life, _ in
      try table(life) { ring in
        ring.setDescriptor(at: life.table, address: life.header, length: 16, flags: Self.next, next: 2)
        ring.setDescriptor(at: life.table + 32, address: life.data, length: 512, flags: Self.next | Self.write, next: isLoop ? 2 : 1)
        ring.setDescriptor(at: life.table + 16, address: life.status, length: 1, flags: Self.write, next: 0)
      }
    }
  }

  @Test("The available index goes backwards", arguments: Front.split)
  func backwards(_ front: Front) throws {
    try attack("2.7.6.1-1", on: front) { life, _ in
      guard life.works() else { return .noAnswer }
      let ring = try life.split
      ring.setAvailableIndex(ring.availableIndex &- 1)
      life.notify()
      return life.stoppedOrNot()
    }
  }

  @Test("The available ring's flags are neither 0 nor 1", arguments: Front.split)
  func flags(_ front: Front) throws {
    try attack("2.7.7.1-1", on: front) { life, _ in
      try life.split.setAvailableFlags(0xfffe)
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      return try life.outcome(life.show())
    }
  }

  @Test("With an event index, the available ring's flags are not 0", arguments: Front.split)
  func flagsWithEvents(_ front: Front) throws {
    try attack("2.7.7.1-2", on: front, Preparation(features: .eventIndex)) { life, _ in
      try life.split.setAvailableFlags(0xffff)
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      return try life.outcome(life.show())
    }
  }

  @Test("The used ring's flags and index are not 0 when the queue starts", arguments: Front.split)
  func usedFlags(_ front: Front) throws {
    try attack("2.7.10.1-1", on: front, Preparation(stage: .negotiated)) { life, victim in
      victim.literal.write(le16: 0xffff, at: life.layout.deviceArea)
      life.enable()
      life.goLive()
      return .untouched
    }
  }

  @Test("Buffers are made available, and nobody notifies although the device wants it", arguments: Front.split, [false, true])
  func silent(_ front: Front, _ events: Bool) throws {
    let clause = events ? "2.7.10.1-5" : "2.7.10.1-3"
    try attack(clause, "2.7.13.4.1-1", on: front, Preparation(features: events ? .eventIndex : [])) { life, _ in
      guard life.works() else { return .noAnswer }
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      // It may have seen it by itself, or needs to be told after all.
      life.notify()
      return try life.outcome(life.answer())
    }
  }

  @Test("avail_event is believed where it was not negotiated, or the lowest bit of the flags where it was", arguments: Front.split, [false, true])
  func believed(_ front: Front, _ events: Bool) throws {
    try attack(events ? "2.7.10.1-4" : "2.7.10.1-2", on: front, Preparation(features: events ? .eventIndex : [])) { life, victim in
      guard life.works() else { return .noAnswer }
      let ring = try life.split
      if events {
        // Whatever the device leaves there, this driver reads that no notification is wanted.
        victim.literal.publish(le16: 1, at: life.layout.deviceArea)
      }
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      ring.publish()
      let isWanted = events ? ring.usedFlags & 1 == 0 : ring.availableEvent == ring.availableIndex &- 1
      guard !isWanted else { throw Failure("this attack has not begun: the driver would notify") }
      // Believing that, it does not notify. The next notification, for whatever reason, tells the device.
      life.notify()
      return try life.outcome(life.answer())
    }
  }

  @Test("The available index is shown before the entry and its descriptors are written", arguments: Front.split)
  func early(_ front: Front) throws {
    try attack("2.7.13.3.1-1", on: front) { life, _ in
      let ring = try life.split
      ring.setAvailableIndex(ring.availableIndex &+ 1)
      life.notify()
      // What it finds is a descriptor of nothing.
      return life.stoppedOrNot()
    }
  }

  @Test("The available index jumps further than the ring is long", arguments: Front.split)
  func jump(_ front: Front) throws {
    try attack("2.7.13.3.1-1", on: front) { life, _ in
      try life.split.setAvailableIndex(life.layout.size + 1)
      life.notify()
      return life.stoppedOrNot()
    }
  }
}

extension Life {
  /// Waits for the device to give up, or for an answer that is none.
  func stoppedOrNot() -> Outcome {
    switch answer() {
    case .stopped: .stopped
    case .used: .untouched
    case .nothing: .noAnswer
    }
  }
}
