import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = VTdBench.disk

@Suite("VT-d's invalidation queue")
struct VTdQueueTests {
  let bench: VTdBench
  let queue: UInt64

  init() throws {
    bench = try VTdBench()
    queue = bench.enableQueue()
  }

  /// Puts descriptors into the queue from its start and moves the tail.
  private func submit(_ descriptors: [(UInt64, UInt64)]) {
    for (i, descriptor) in descriptors.enumerated() {
      bench.store(descriptor.0, at: queue + UInt64(i) * 16)
      bench.store(descriptor.1, at: queue + UInt64(i) * 16 + 8)
    }
    bench.unit.write(UInt64(descriptors.count) * 16, at: 0x88, width: 8)
  }

  static let descriptors: [(UInt64, UInt64)] = [
    (2 | 1 << 4, 0), (2 | 2 << 4 | 1 << 16, 0), (2 | 3 << 4 | 1 << 16, 0x40_0000),
    (2 | 3 << 4 | 1 << 16, 0x40_0000 | 3), (3 | UInt64(disk.rawValue) << 32, 0x40_0000),
    (3 | UInt64(disk.rawValue) << 32, 0x40_7000 | 1), (1 | 1 << 4, 0), (1 | 2 << 4 | 1 << 16, 0),
    (1 | 3 << 4 | UInt64(disk.rawValue) << 32, 0),
  ]

  @Test(
    "Each kind of descriptor ends what it names before the wait after it is answered (R110, R159)",
    arguments: descriptors.indices)
  func everyKind(index: Int) throws {
    if Self.descriptors[index].0 & 15 == 3 { bench.setContext(disk, table: bench.table, kind: 1) }
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.map(0x40_0000, to: 0x30_0000)
    submit([Self.descriptors[index], (5 | 1 << 5 | 0xD0E << 32, 0x30_0100)])
    #expect(bench.load(0x30_0100) == 0xD0E)
    #expect(bench.unit.read(at: 0x80, width: 8) == 32)
    #expect(bench.device.read(0x40_0000) == .success(0xFEED))
  }

  @Test(
    "A device with a cache of its own forgets when it is told so, and not when the unit is; one without, the other way round (R131)",
    arguments: [false, true], [UInt64(1), 2, 3])
  func deviceIOTLB(isAllowed: Bool, granularity: UInt64) throws {
    bench.setContext(disk, table: bench.table, kind: isAllowed ? 1 : 0)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.map(0x40_0000, to: 0x30_0000)
    let (unit, own): ((UInt64, UInt64), (UInt64, UInt64)) = (
      (2 | granularity << 4 | 1 << 16, granularity == 3 ? 0x40_0000 : 0), (3 | UInt64(disk.rawValue) << 32, 0x40_0000)
    )
    submit([isAllowed ? unit : own])
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    if isAllowed {
      bench.unit.write(1 << 63 | granularity << 60 | 1 << 32, at: 0x208, width: 8)
      #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    }
    // The queue goes on where it was.
    let (low, high) = isAllowed ? own : unit
    bench.store(low, at: queue + 16)
    bench.store(high, at: queue + 24)
    bench.store(5 | 1 << 5 | 0xD0E << 32, at: queue + 32)
    bench.store(0x30_0100, at: queue + 40)
    bench.unit.write(48, at: 0x88, width: 8)
    #expect(bench.load(0x30_0100) == 0xD0E)
    #expect(bench.device.read(0x40_0000) == .success(0xFEED))
  }

  @Test("A wait that asks for an interrupt gets it")
  func waitInterrupt() throws {
    bench.unit.write(0x51, at: 0xA4, width: 4)
    bench.unit.write(0xFEE0_1000, at: 0xA8, width: 4)
    bench.unit.write(0, at: 0xA0, width: 4)
    submit([(5 | 1 << 4, 0)])
    #expect(bench.messages.all == [InterruptMessage(address: 0xFEE0_1000, data: 0x51)])
    #expect(bench.unit.read(at: 0x9C, width: 4) == 1)
    bench.unit.write(1, at: 0x9C, width: 4)
    #expect(bench.unit.read(at: 0x9C, width: 4) == 0)
  }

  @Test(
    "A descriptor that is none stops the queue where it stands until the driver has seen the error",
    arguments: [UInt64(0), 4, 15, 1, 2])
  func invalidDescriptor(descriptor: UInt64) throws {
    submit([(descriptor, 0), (5 | 1 << 5 | 7 << 32, 0x30_0100)])
    #expect(bench.unit.read(at: 0x80, width: 8) == 0 && bench.unit.read(at: 0x34, width: 4) & 0x10 != 0)
    #expect(bench.load(0x30_0100) == 0)
    bench.store(2 | 1 << 4, at: queue)
    bench.unit.write(0x10, at: 0x34, width: 4)
    #expect(bench.load(0x30_0100) == 7 && bench.unit.read(at: 0x80, width: 8) == 32)
  }

  @Test(
    "A queue outside memory, a tail past its end and a full turn end in an error or at the tail, never in a hang (R091)"
  )
  func hostileQueue() throws {
    bench.unit.write(0x7FFF0, at: 0x88, width: 8)
    #expect(bench.unit.read(at: 0x34, width: 4) & 0x10 != 0)
    bench.unit.write(0, at: 0x88, width: 8)
    bench.unit.write(0x10, at: 0x34, width: 4)
    bench.unit.write(1 << 31, at: 0x18, width: 4)
    bench.unit.write(1 << 50, at: 0x90, width: 8)
    bench.unit.write(1 << 31 | 1 << 26, at: 0x18, width: 4)
    bench.unit.write(16, at: 0x88, width: 8)
    #expect(bench.unit.read(at: 0x34, width: 4) & 0x10 != 0)
    // Every descriptor of a page, and round to the first.
    bench.unit.write(1 << 31, at: 0x18, width: 4)
    bench.unit.write(0x10, at: 0x34, width: 4)
    bench.unit.write(queue, at: 0x90, width: 8)
    for i in 0..<256 { bench.store(2 | 1 << 4, at: queue + UInt64(i) * 16) }
    bench.unit.write(1 << 31 | 1 << 26, at: 0x18, width: 4)
    bench.unit.write(255 * 16, at: 0x88, width: 8)
    #expect(bench.unit.read(at: 0x80, width: 8) == 255 * 16)
    bench.unit.write(0, at: 0x88, width: 8)
    #expect(bench.unit.read(at: 0x80, width: 8) == 0 && bench.unit.read(at: 0x34, width: 4) == 0)
  }

  @Test("Any sequence of register writes leaves a unit that answers (R091)")
  func randomWrites() throws {
    var random = SystemRandomNumberGenerator()
    for _ in 0..<20_000 {
      let offset = Int.random(in: -8...0x2B0, using: &random)
      bench.unit.write(
        random.next() & (Bool.random() ? .max : 0xFF_FFFF), at: offset, width: [1, 4, 8][Int.random(in: 0...2)])
      if Int.random(in: 0..<64) == 0 { _ = bench.device.read(UInt64.random(in: 0...0x50_0000, using: &random) & ~7) }
    }
    bench.unit.reset()
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }
}
