import DMA
import Testing
import Virtio
import VirtioDevices
import VirtioTestKit

@Suite("A hostile driver: an IOMMU's event queue", .timeLimit(.minutes(10))) struct IOMMUEventTests {
  private static let clause = "5.13.6.9-1"
  private static let endpoint = IOMMUSite.working.endpoint

  /// Lets an endpoint run into nothing, and waits for so many buffers.
  private func collect(_ life: Life, _ count: Int) throws -> [UInt32]? {
    life.fault(Self.endpoint, 0x6000_0000)
    return life.usedEvents(count)
  }

  @Test("Event buffers are too small for a report: they come back empty, and it waits for the next (R169)", arguments: Front.modern)
  func small(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, victim in
      let counts: [UInt32] = [1, 4, 16, 23]
      for count in counts { life.offer([LiteralDescriptor(life.table, count, writable: true)]) }
      victim.literal.write([UInt8](repeating: 0xee, count: 32), at: life.table)
      guard try collect(life, counts.count) == [0, 0, 0, 0] else { return .noAnswer }
      guard victim.literal.read(32, at: life.table).allSatisfy({ $0 == 0xee }) else { throw Failure("half a report was written") }
      return .requestRefused
    }
  }

  @Test("The event queue is full of buffers that are too small", arguments: Front.modern)
  func full(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, _ in
      for _ in 0..<16 { life.offer([LiteralDescriptor(life.table, 8, writable: true)]) }
      return .untouched
    }
  }

  @Test("Event buffers are device-readable: none of them is written", arguments: Front.modern)
  func readable(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, _ in
      life.offer([LiteralDescriptor(life.table, 24)])
      life.offer([LiteralDescriptor(life.table, 4096)])
      guard try collect(life, 2) == [0, 0] else { return .noAnswer }
      return .requestRefused
    }
  }

  @Test("Requests are put into the event queue: nobody does what they ask for", arguments: Front.modern)
  func requests(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, victim in
      victim.literal.write(IOMMUBytes.detach(IOMMUSite.attacked.domain, IOMMUSite.attacked.endpoint), at: life.header)
      let before = victim.inventory
      life.offer([LiteralDescriptor(life.header, 20), LiteralDescriptor(life.status, 4, writable: true)])
      guard try collect(life, 1) == [0] else { return .noAnswer }
      guard victim.inventory == before else { throw Failure("the event queue took a request") }
      return .requestRefused
    }
  }

  @Test("An event buffer has device-readable bytes in front, is cut in two, or is longer than a report", arguments: Front.modern, 0..<3)
  func shaped(_ front: Front, _ way: Int) throws {
    try attackIOMMU(Self.clause, on: front) { life, victim in
      let whole = LiteralDescriptor(life.table, 24, writable: true)
      let chains = [
        [LiteralDescriptor(life.header, 100), whole],
        [LiteralDescriptor(life.table, 11, writable: true), LiteralDescriptor(life.table + 11, 13, writable: true)],
        [LiteralDescriptor(life.table, 4096, writable: true)],
      ]
      victim.literal.write([UInt8](repeating: 0xee, count: 4096), at: life.table)
      life.offer(chains[way])
      guard try collect(life, 1) == [24] else { return .noAnswer }
      guard victim.literal.read(24, at: life.table) == life.record(Self.endpoint, 0x6000_0000) else { throw Failure("that is no report") }
      guard victim.literal.read(4072, at: life.table + 24).allSatisfy({ $0 == 0xee }) else {
        throw Failure("more than a report was written")
      }
      return .served
    }
  }

  @Test("An event buffer is where there is no memory, and has no bytes", arguments: Front.modern)
  func nowhere(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, victim in
      life.offer([LiteralDescriptor(DMAAddress(0x7f_0000_0000), 24, writable: true)])
      life.offer([LiteralDescriptor(life.table, 0, writable: true)])
      guard let lengths = try collect(life, 2) else { return victim.transport.status.contains(.needsReset) ? .stopped : .noAnswer }
      guard lengths == [0, 0] else { throw Failure("something was written") }
      return .requestRefused
    }
  }

  @Test("The driver offers no event buffers while faults come by the thousand (R093)", arguments: Front.modern)
  func starved(_ front: Front) throws {
    try attackIOMMU(Self.clause, on: front) { life, victim in
      for i in 0..<2000 as Range<UInt64> { life.fault(IOMMUSite.attacked.endpoint, 0x6000_0000 + i * 4096) }
      guard let dropped = victim.unit?.droppedFaults, dropped >= 2000 - 256 else { throw Failure("reports pile up") }
      // What waits is taken, so that the next is told again.
      for _ in 0..<256 {
        life.offer([LiteralDescriptor(life.table, 24, writable: true)])
        guard life.usedEvents(1) == [24] else { return .noAnswer }
      }
      return .untouched
    }
  }
}
