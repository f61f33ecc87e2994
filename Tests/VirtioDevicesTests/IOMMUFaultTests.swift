import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

/// The event queue (§5.13.6.9).
@Suite("virtio-iommu: reports of faults")
struct IOMMUFaultTests {
  private func report(
    _ rig: IOMMURig, _ endpoint: UInt32, _ address: UInt64, _ access: DMAAccess, _ reason: DMAFault.Reason = .unmapped
  ) {
    rig.endpoints[endpoint]?.report(DMAFault(address: DMAAddress(address), access: access, reason: reason))
  }

  /// The 24 bytes of §5.13.6.9.
  private func record(
    _ rig: IOMMURig, _ reason: UInt8, _ flags: UInt32, _ endpoint: UInt32, _ address: UInt64
  ) -> [UInt8] {
    [reason, 0, 0, 0] + flags.bytes + endpoint.bytes + [0, 0, 0, 0] + address.bytes
  }

  private func events(_ rig: IOMMURig, kind: RingKind = RingKind()) throws -> DeviceRig {
    try DeviceRig(rig.device, queue: 1, features: rig.features, kind: kind, queueSize: 64, memoryBytes: 2 << 20)
  }

  @Test(
    "A fault is one record of 24 bytes: reason, direction, endpoint and address (R169, R092)", arguments: RingKind.all)
  func records(kind: RingKind) throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 9) == Status.ok)
    let events = try events(rig, kind: kind)
    let buffers = (0..<5).map { _ in events.submit(readable: [], writable: [24]) }
    try events.kick()
    #expect(events.inFlight == 5, "buffers wait with the driver's ring until there is something to say")
    #expect(events.lent == 0)
    report(rig, 8, 0x1234, .write)
    report(rig, 9, .max, .read)
    report(rig, 9, 0x5678, .write, .permission)
    report(rig, 9, 0x42, .read, .discontiguous)
    try events.serveReady()
    let expected = [
      record(rig, 1, 0x102, 8, 0x1234), record(rig, 2, 0x101, 9, .max), record(rig, 2, 0x102, 9, 0x5678),
      record(rig, 0, 0x101, 9, 0x42),
    ]
    for (buffer, record) in zip(buffers, expected) {
      let answer = try #require(events.take(buffer))
      #expect(answer == (24, record))
    }
    #expect(events.take(buffers[4]) == nil && rig.device.droppedFaults == 0)
  }

  @Test(
    "A whole device's fault: what its queue meets is told once, and a closed gate or bypass tells nothing (R092, R039)")
  func fromAQueue() throws {
    let rig = try IOMMURig()
    let events = try events(rig)
    let buffers = (0..<3).map { _ in events.submit(readable: [], writable: [24]) }
    let space = try #require(rig.endpoints[8])
    // A queue whose ring cannot be reached.
    let (layout, _) = literalLayout(size: 4, packed: false, at: 0x3000)
    var queue = try Virtqueue(index: 0, layout: layout, features: .version1, in: space)
    #expect(throws: QueueError.self) { try queue.beginRound() }
    try events.serveReady()
    let answer = try #require(events.take(buffers[0]))
    #expect(answer.bytes[0] == 1 && answer.bytes[8..<12] == [8, 0, 0, 0])
    space.setOpen(false)
    var closed = try Virtqueue(index: 0, layout: layout, features: .version1, in: space)
    #expect(throws: QueueError.self) { try closed.beginRound() }
    space.setOpen(true)
    rig.configure([1], at: 36)
    report(rig, 8, 1 << 40, .read)
    try events.serveReady()
    #expect(events.take(buffers[1]) == nil)
  }

  @Test(
    "Without buffers 256 reports wait and the rest is dropped; endpoints wait for nothing, and nothing grows (R169, R093)"
  )
  func storm() throws {
    let rig = try IOMMURig(IOMMURig.options { $0.maxFaultsPerSecond = 1 << 30 })
    for n in 0..<100_000 as Range<UInt64> { report(rig, n % 2 == 0 ? 8 : 9, n, .read) }
    #expect(rig.device.droppedFaults == 100_000 - 256)
    let events = try events(rig)
    var seen: UInt64 = 0
    while seen < 256 {
      let buffers = (0..<32).map { _ in events.submit(readable: [], writable: [24]) }
      try events.kick()
      for buffer in buffers {
        let answer = try #require(events.take(buffer))
        #expect(answer.bytes == record(rig, 1, 0x101, seen % 2 == 0 ? 8 : 9, seen))
        seen += 1
      }
    }
    let one = events.submit(readable: [], writable: [24])
    try events.kick()
    #expect(events.take(one) == nil)
    report(rig, 8, 7, .read)
    try events.serveReady()
    #expect(events.take(one)?.bytes == record(rig, 1, 0x101, 8, 7))
  }

  @Test("More reports a second than agreed are dropped (R093)")
  func rate() throws {
    let rig = try IOMMURig(IOMMURig.options { $0.maxFaultsPerSecond = 3 })
    let clock = ContinuousClock()
    let start = clock.now
    for n in 0..<200 as Range<UInt64> { report(rig, 8, n, .read) }
    let seconds = UInt64((clock.now - start).components.seconds)
    #expect(rig.device.droppedFaults >= 200 - 3 * (seconds + 2) && rig.device.droppedFaults <= 197)
  }

  @Test("A buffer that is too small comes back empty, and the report goes whole into the next (R169)")
  func small() throws {
    let rig = try IOMMURig()
    let events = try events(rig)
    report(rig, 8, 0x77, .read)
    let readable = events.submit(readable: [[1, 2, 3]], writable: [])
    let sizes = [1, 8, 23].map { events.submit(readable: [], writable: [$0]) }
    let pieces = events.submit(readable: [[9]], writable: [5, 1, 30])
    try events.kick()
    #expect(events.take(readable)?.used == 0)
    for buffer in sizes {
      let answer = try #require(events.take(buffer))
      #expect(answer.used == 0 && answer.bytes.allSatisfy { $0 == 0xEE })
    }
    let answer = try #require(events.take(pieces))
    #expect(
      answer.used == 24 && Array(answer.bytes[..<24]) == record(rig, 1, 0x101, 8, 0x77)
        && answer.bytes[24...].allSatisfy { $0 == 0xEE })
  }

  @Test("A reset forgets reports that nobody took (R166)")
  func reset() throws {
    let rig = try IOMMURig()
    report(rig, 8, 1, .read)
    rig.device.reset()
    let events = try events(rig)
    let buffer = events.submit(readable: [], writable: [24])
    try events.kick()
    try events.serveReady()
    #expect(events.take(buffer) == nil)
  }
}
