import DMA
import MachineKit
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: packed rings", .timeLimit(.minutes(10))) struct PackedRingTests {
  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let next: UInt16 = 1
  private static let write: UInt16 = 2
  private static let indirect: UInt16 = 4

  /// One descriptor of the ring, made available by hand.
  private struct Element {
    var address: DMAAddress
    var length: UInt32
    var flags: UInt16
  }

  /// Header, data and status of a read as three elements; as `change` left them; the first made available last.
  private static func raw(_ session: Session, _ change: (inout [Element]) throws -> Void) throws -> Outcome {
    session.writeHeader(0, sector: 0)
    session.target.allow(session.data, 512)
    var elements = [
      Element(address: session.header, length: 16, flags: Self.next),
      Element(address: session.data, length: 512, flags: Self.next | Self.write),
      Element(address: session.status, length: 1, flags: Self.write),
    ]
    try change(&elements)
    let ring = try session.packed
    for (i, e) in elements.enumerated().reversed() {
      ring.setDescriptor(
        at: session.layout.descriptorArea + 16 * i, address: e.address, length: e.length, id: 3, flags: e.flags | 0x80)
    }
    session.notify()
    let answer = try session.rawAnswer()
    if case .used = answer { session.goOn(atSlot: elements.count) }
    return try session.outcome(answer)
  }

  private static func table(
    _ session: Session, flags: UInt16 = indirect, _ change: (LiteralPackedRing) throws -> Void
  ) throws -> Outcome {
    let ring = try session.packed
    ring.setDescriptorBytes(at: session.table, address: session.header, length: 16, flags: 0)
    ring.setDescriptorBytes(at: session.table + 16, address: session.data, length: 512, flags: Self.write)
    ring.setDescriptorBytes(at: session.table + 32, address: session.status, length: 1, flags: Self.write)
    try change(ring)
    return try raw(session) { $0 = [Element(address: session.table, length: 48, flags: flags)] }
  }

  @Test("The driver's event suppression structure holds what is none", arguments: [Transport].packed, [false, true])
  func events(_ transport: Transport, _ negotiated: Bool) throws {
    try attack("2.8.21.3.1-1", on: transport, Preparation(features: negotiated ? .eventIndex : [])) { session, _ in
      try session.packed.setDriverEvent(offset: 0x7fff, wrap: true, flags: 0xffff)
      return try session.read()
    }
  }

  private static let attacks: [Attack] = [
    Attack("A descriptor is changed that the device has not used", "2.8.16-1", on: .packed) { session, target in
      session.postRead()
      session.ring.publish()
      target.literal.write(le32: 0, at: session.layout.descriptorArea + 16 + 8)
      session.notify()
      return try session.outcome(session.answer())
    },
    Attack("A descriptor is withdrawn after it was made available", "2.8.16-2", on: .packed) { session, _ in
      let ring = try session.packed
      session.postRead()
      ring.publish()
      let flags = ring.flags(of: 0)
      if flags & 0x8080 == 0x80 {
        session.target.literal.publish(le16: flags & ~0x80, at: session.layout.descriptorArea + 14)
      }
      session.notify()
      if flags & 0x8080 == 0x80, ring.flags(of: 0) & 0x8000 == 0 {
        session.target.literal.publish(le16: flags, at: session.layout.descriptorArea + 14)
        session.notify()
      }
      return try session.outcome(session.answer())
    },
    Attack(
      "Notifications carry an offset and a wrap counter of nothing", "2.8.16-3", on: .modern,
      features: .notificationData
    ) { session, target in
      session.postRead()
      session.ring.publish()
      for data in [UInt16(0xffff), 0x8000, 0x7fff, 16] { target.driver.notify(0, data: data) }
      return try session.outcome(session.answer())
    },
    Attack("A list is longer than the queue", "2.8.17-1", "2.8.17-2", on: .packed) { session, _ in
      try raw(session) { elements in
        elements = (0..<Int(session.layout.size)).map { _ in
          Element(address: session.header, length: 16, flags: Self.next)
        }
      }
    },
    Attack("A list is longer than 2^32 bytes", "2.8.17-2", on: .packed) { session, _ in
      try raw(session) { elements in
        elements[1].length = .max
        elements[1].address = session.foreign
        elements.insert(elements[1], at: 1)
      }
    },
    Attack("A device-readable descriptor comes after a device-writable one", "2.8.17-3", on: .packed) { session, _ in
      try raw(session) { elements in
        elements = [
          Element(address: session.data, length: 512, flags: Self.next | Self.write),
          Element(address: session.header, length: 16, flags: Self.next),
          Element(address: session.status, length: 1, flags: Self.write),
        ]
      }
    },
    Attack(
      "The first descriptor of a list is available, and there is no room for the others", "2.8.17-4", "2.8.17-5",
      on: .packed
    ) { session, _ in
      try raw(session) { $0 = [$0[0]] }
    },
    Attack("An indirect table is used that was not negotiated", "2.8.19-1", on: .packed) { session, _ in
      try table(session) { _ in }
    },
    Attack(
      "Descriptors of an indirect table have other flags than WRITE", "2.8.19-2", on: .packed,
      features: .indirectDescriptors
    ) { session, _ in
      try table(session) { ring in
        ring.setDescriptorBytes(
          at: session.table, address: session.header, length: 16, flags: Self.next | Self.indirect | 0x8080)
        ring.setDescriptorBytes(
          at: session.table + 16, address: session.data, length: 512, flags: Self.write | Self.indirect | 0x80)
        ring.setDescriptorBytes(
          at: session.table + 32, address: session.status, length: 1, flags: Self.write | Self.next | 0x8000)
      }
    },
    Attack("An indirect table is longer than the queue", "2.8.19-3", on: .packed, features: .indirectDescriptors) {
      session, _ in
      let ring = try session.packed
      ring.setDescriptorBytes(at: session.table, address: session.header, length: 16, flags: 0)
      for i in 0..<32 {
        ring.setDescriptorBytes(
          at: session.table + 16 * (i + 1), address: session.data + 16 * i, length: 16, flags: Self.write)
      }
      ring.setDescriptorBytes(at: session.table + 16 * 33, address: session.status, length: 1, flags: Self.write)
      return try raw(session) { $0 = [Element(address: session.table, length: 16 * 34, flags: Self.indirect)] }
    },
    Attack(
      "A descriptor with INDIRECT is in a list that NEXT links", "2.8.19-4", on: .packed, features: .indirectDescriptors
    ) { session, _ in
      try table(session, flags: Self.indirect | Self.next) { _ in }
    },
    Attack("Flags are written before the rest of a descriptor", "2.8.21.1.1-1", on: .packed) { session, _ in
      try raw(session) { $0 = [Element(address: DMAAddress(0), length: 0, flags: 0)] }
    },
  ]
}

extension Session {
  /// Waits until slot 0 of a packed ring, which was filled by hand in the first lap, is used.
  func rawAnswer() throws -> Answer {
    let ring = try packed
    var isUsed = false
    var stopped = false
    _ = target.interrupts.poll {
      isUsed = ring.flags(of: 0) & 0x8080 == 0x8080
      stopped = target.driver.status.contains(.needsReset)
      return isUsed || stopped
    }
    return stopped ? .stopped : isUsed ? .used([]) : .nothing
  }
}
