import DMA
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: packed rings", .timeLimit(.minutes(10))) struct PackedRingTests {
  private static let next: UInt16 = 1
  private static let write: UInt16 = 2
  private static let indirect: UInt16 = 4

  /// One descriptor of the ring, made available by hand.
  private struct Element {
    var address: DMAAddress
    var length: UInt32
    var flags: UInt16
  }

  /// Header, data and status of a read as three elements; whatever `change` makes of them; the first made available last.
  private func raw(_ life: Life, _ change: (inout [Element]) throws -> Void) throws -> Outcome {
    life.writeHeader(0, sector: 0)
    life.victim.allow(life.data, 512)
    var elements = [
      Element(address: life.header, length: 16, flags: Self.next), Element(address: life.data, length: 512, flags: Self.next | Self.write),
      Element(address: life.status, length: 1, flags: Self.write),
    ]
    try change(&elements)
    let ring = try life.packed
    for (i, e) in elements.enumerated().reversed() {
      ring.setDescriptor(at: life.layout.descriptorArea + 16 * i, address: e.address, length: e.length, id: 3, flags: e.flags | 0x80)
    }
    life.notify()
    let answer = try life.rawAnswer()
    if case .used = answer { life.goOn(atSlot: elements.count) }
    return try life.outcome(answer)
  }

  private func table(_ life: Life, flags: UInt16 = indirect, _ change: (LiteralPackedRing) throws -> Void) throws -> Outcome {
    let ring = try life.packed
    ring.setDescriptorBytes(at: life.table, address: life.header, length: 16, flags: 0)
    ring.setDescriptorBytes(at: life.table + 16, address: life.data, length: 512, flags: Self.write)
    ring.setDescriptorBytes(at: life.table + 32, address: life.status, length: 1, flags: Self.write)
    try change(ring)
    return try raw(life) { $0 = [Element(address: life.table, length: 48, flags: flags)] }
  }

  @Test("The areas are not aligned", arguments: Front.packed, 0..<3)
  func misaligned(_ front: Front, _ area: Int) throws {
    try attack("2.8.11-1", on: front, Preparation(stage: .negotiated)) { life, victim in
      var layout = life.layout
      switch area {
      case 0: layout.descriptorArea = layout.descriptorArea + 8
      case 1: layout.driverArea = layout.driverArea + 2
      default: layout.deviceArea = layout.deviceArea + 2
      }
      victim.transport.enableQueue(0, layout)
      life.goLive()
      return life.stoppedOrNot()
    }
  }

  @Test("A descriptor is changed that the device has not used", arguments: Front.packed)
  func changed(_ front: Front) throws {
    try attack("2.8.16-1", on: front) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      victim.literal.write(le32: 0, at: life.layout.descriptorArea + 16 + 8)
      life.notify()
      return try life.outcome(life.answer())
    }
  }

  @Test("A descriptor is withdrawn after it was made available", arguments: Front.packed)
  func withdrawn(_ front: Front) throws {
    try attack("2.8.16-2", on: front) { life, _ in
      let ring = try life.packed
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      ring.publish()
      let flags = ring.flags(of: 0)
      if flags & 0x8080 == 0x80 { life.victim.literal.publish(le16: flags & ~0x80, at: life.layout.descriptorArea + 14) }
      life.notify()
      if flags & 0x8080 == 0x80, ring.flags(of: 0) & 0x8000 == 0 {
        life.victim.literal.publish(le16: flags, at: life.layout.descriptorArea + 14)
        life.notify()
      }
      return try life.outcome(life.answer())
    }
  }

  @Test("Notifications carry an offset and a wrap counter of nothing", arguments: Front.modern)
  func notificationData(_ front: Front) throws {
    try attack("2.8.16-3", on: front, Preparation(features: .notificationData)) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      for data in [UInt16(0xffff), 0x8000, 0x7fff, 16] { victim.transport.notify(0, data: data) }
      return try life.outcome(life.answer())
    }
  }

  @Test("A list is longer than the queue", arguments: Front.packed)
  func tooLong(_ front: Front) throws {
    try attack("2.8.17-1", "2.8.17-2", on: front) { life, _ in
      try raw(life) { elements in
        elements = (0..<Int(life.layout.size)).map { _ in Element(address: life.header, length: 16, flags: Self.next) }
      }
    }
  }

  @Test("A list is longer than 2^32 bytes", arguments: Front.packed)
  func tooLarge(_ front: Front) throws {
    try attack("2.8.17-2", on: front) { life, _ in
      try raw(life) { elements in
        elements[1].length = .max
        elements[1].address = life.foreign
        elements.insert(elements[1], at: 1)
      }
    }
  }

  @Test("A device-readable descriptor comes after a device-writable one", arguments: Front.packed)
  func order(_ front: Front) throws {
    try attack("2.8.17-3", on: front) { life, _ in
      try raw(life) { elements in
        elements = [
          Element(address: life.data, length: 512, flags: Self.next | Self.write), Element(address: life.header, length: 16, flags: Self.next),
          Element(address: life.status, length: 1, flags: Self.write),
        ]
      }
    }
  }

  @Test("The first descriptor of a list is available, and there is no room for the others", arguments: Front.packed)
  func noRoom(_ front: Front) throws {
    try attack("2.8.17-4", "2.8.17-5", on: front) { life, _ in
      try raw(life) { $0 = [$0[0]] }
    }
  }

  @Test("An indirect table is used that was not negotiated", arguments: Front.packed)
  func notNegotiated(_ front: Front) throws {
    try attack("2.8.19-1", on: front) { life, _ in try table(life) { _ in } }
  }

  @Test("Descriptors of an indirect table have other flags than WRITE", arguments: Front.packed)
  func tableFlags(_ front: Front) throws {
    try attack("2.8.19-2", on: front, Preparation(features: .indirectDescriptors)) { life, _ in
      try table(life) { ring in
        ring.setDescriptorBytes(at: life.table, address: life.header, length: 16, flags: Self.next | Self.indirect | 0x8080)
        ring.setDescriptorBytes(at: life.table + 16, address: life.data, length: 512, flags: Self.write | Self.indirect | 0x80)
        ring.setDescriptorBytes(at: life.table + 32, address: life.status, length: 1, flags: Self.write | Self.next | 0x8000)
      }
    }
  }

  @Test("An indirect table is longer than the queue", arguments: Front.packed)
  func longTable(_ front: Front) throws {
    try attack("2.8.19-3", on: front, Preparation(features: .indirectDescriptors)) { life, _ in
      let ring = try life.packed
      ring.setDescriptorBytes(at: life.table, address: life.header, length: 16, flags: 0)
      for i in 0..<32 { ring.setDescriptorBytes(at: life.table + 16 * (i + 1), address: life.data + 16 * i, length: 16, flags: Self.write) }
      ring.setDescriptorBytes(at: life.table + 16 * 33, address: life.status, length: 1, flags: Self.write)
      return try raw(life) { $0 = [Element(address: life.table, length: 16 * 34, flags: Self.indirect)] }
    }
  }

  @Test("A descriptor with INDIRECT is in a list that NEXT links", arguments: Front.packed)
  func linked(_ front: Front) throws {
    try attack("2.8.19-4", on: front, Preparation(features: .indirectDescriptors)) { life, _ in
      try table(life, flags: Self.indirect | Self.next) { _ in }
    }
  }

  @Test("Flags are written before the rest of a descriptor", arguments: Front.packed)
  func early(_ front: Front) throws {
    try attack("2.8.21.1.1-1", on: front) { life, _ in
      try raw(life) { $0 = [Element(address: DMAAddress(0), length: 0, flags: 0)] }
    }
  }

  @Test("Buffers are made available, and nobody notifies although the device wants it", arguments: Front.packed, [false, true])
  func silent(_ front: Front, _ events: Bool) throws {
    try attack("2.8.21.3.1-1", on: front, Preparation(features: events ? .eventIndex : [])) { life, _ in
      guard life.works() else { return .noAnswer }
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      life.notify()
      return try life.outcome(life.answer())
    }
  }

  @Test("The driver's event suppression structure holds what is none", arguments: Front.packed, [false, true])
  func events(_ front: Front, _ negotiated: Bool) throws {
    try attack("2.8.21.3.1-1", on: front, Preparation(features: negotiated ? .eventIndex : [])) { life, _ in
      try life.packed.setDriverEvent(offset: 0x7fff, wrap: true, flags: 0xffff)
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      return try life.outcome(life.show())
    }
  }
}

extension Life {
  /// Waits until slot 0 of a packed ring, which was filled by hand in the first lap, is used.
  func rawAnswer() throws -> Answer {
    let ring = try packed
    var isUsed = false
    var stopped = false
    _ = victim.watch.wait {
      isUsed = ring.flags(of: 0) & 0x8080 == 0x8080
      stopped = victim.transport.status.contains(.needsReset)
      return isUsed || stopped
    }
    return stopped ? .stopped : isUsed ? .used([]) : .nothing
  }
}
