import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioIOMMU
import VirtioTestKit

@Suite("A hostile driver: an IOMMU's event queue", .timeLimit(.minutes(10))) struct IOMMUEventTests {
  private static let clause = "5.13.6.9-1"
  private static let endpoint = IOMMUSite.working.endpoint

  /// Lets an endpoint run into nothing, and waits for so many buffers.
  private static func collect(_ session: Session, _ count: Int) throws -> [UInt32]? {
    session.fault(Self.endpoint, 0x6000_0000)
    return session.usedEvents(count)
  }

  @Test(
    "An event buffer has device-readable bytes in transport, is cut in two, or is longer than a report",
    arguments: [Transport].modern, 0..<3)
  func shaped(_ transport: Transport, _ way: Int) throws {
    try attackIOMMU(Self.clause, on: transport) { session, target in
      let whole = LiteralDescriptor(session.table, 24, writable: true)
      let chains = [
        [LiteralDescriptor(session.header, 100), whole],
        [
          LiteralDescriptor(session.table, 11, writable: true),
          LiteralDescriptor(session.table + 11, 13, writable: true),
        ],
        [LiteralDescriptor(session.table, 4096, writable: true)],
      ]
      target.literal.write([UInt8](repeating: 0xee, count: 4096), at: session.table)
      session.offer(chains[way])
      guard try Self.collect(session, 1) == [24] else { return .noAnswer }
      guard target.literal.read(24, at: session.table) == session.record(Self.endpoint, 0x6000_0000) else {
        throw Failure("that is no report")
      }
      guard target.literal.read(4072, at: session.table + 24).allSatisfy({ $0 == 0xee }) else {
        throw Failure("more than a report was written")
      }
      return .served
    }
  }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R169)
    .iommu(
      "Event buffers are too small for a report: they come back empty, and it waits for the next", clause, on: .modern
    ) { session, target in
      let counts: [UInt32] = [1, 4, 16, 23]
      for count in counts { session.offer([LiteralDescriptor(session.table, count, writable: true)]) }
      target.literal.write([UInt8](repeating: 0xee, count: 32), at: session.table)
      guard try Self.collect(session, counts.count) == [0, 0, 0, 0] else { return .noAnswer }
      guard target.literal.read(32, at: session.table).allSatisfy({ $0 == 0xee }) else {
        throw Failure("half a report was written")
      }
      return .requestRefused
    },
    // (R093)
    .iommu("The driver offers no event buffers while faults come by the thousand", clause, on: .modern) {
      session, target in
      for i in 0..<2000 as Range<UInt64> { session.fault(IOMMUSite.attacked.endpoint, 0x6000_0000 + i * 4096) }
      guard let dropped = target.unit?.droppedFaults, dropped >= 2000 - 256 else { throw Failure("reports pile up") }
      // Pending events are taken, so that the next one is reported again.
      for _ in 0..<256 {
        session.offer([LiteralDescriptor(session.table, 24, writable: true)])
        guard session.usedEvents(1) == [24] else { return .noAnswer }
      }
      return .untouched
    },
    .iommu("The event queue is full of buffers that are too small", clause, on: .modern) { session, _ in
      for _ in 0..<16 { session.offer([LiteralDescriptor(session.table, 8, writable: true)]) }
      return .untouched
    },
    .iommu("Event buffers are device-readable: none of them is written", clause, on: .modern) { session, _ in
      session.offer([LiteralDescriptor(session.table, 24)])
      session.offer([LiteralDescriptor(session.table, 4096)])
      guard try collect(session, 2) == [0, 0] else { return .noAnswer }
      return .requestRefused
    },
    .iommu("Requests are put into the event queue: they are not done", clause, on: .modern) { session, target in
      target.literal.write(
        IOMMUBytes.detach(IOMMUSite.attacked.domain, IOMMUSite.attacked.endpoint), at: session.header)
      let before = target.inventory
      session.offer([LiteralDescriptor(session.header, 20), LiteralDescriptor(session.status, 4, writable: true)])
      guard try collect(session, 1) == [0] else { return .noAnswer }
      guard target.inventory == before else { throw Failure("the event queue took a request") }
      return .requestRefused
    },
    .iommu("An event buffer is where there is no memory, and has no bytes", clause, on: .modern) { session, target in
      session.offer([LiteralDescriptor(DMAAddress(0x7f_0000_0000), 24, writable: true)])
      session.offer([LiteralDescriptor(session.table, 0, writable: true)])
      guard let lengths = try collect(session, 2) else {
        return target.driver.status.contains(.needsReset) ? .stopped : .noAnswer
      }
      guard lengths == [0, 0] else { throw Failure("something was written") }
      return .requestRefused
    },
  ]
}
