import MachineKit
import PCI
import Testing

/// A driver written from the figures of the specification, number by number; it shares no word with the driver of the
/// library.
final class LiteralDriver {
  struct Answer: Equatable {
    var result: UInt32
    /// Type in bits 10:8, code in bits 7:0.
    var status: UInt16
    var queue: UInt16
    var head: UInt16
    var identifier: UInt16
    var retry: Bool
  }
  private struct Queue {
    var submission: UInt64
    var completion: UInt64
    var size: UInt32
    var completionSize: UInt32
    var tail: UInt32 = 0
    var head: UInt32 = 0
    var phase: UInt32 = 1
  }
  let rig: Rig
  /// Added to what the device is told: where guest memory begins for it.
  let offset: UInt64
  private var queues: [Int: Queue] = [:]
  private var nextIdentifier: UInt16 = 0x100

  static let adminSubmission: UInt64 = 0x1_0000
  static let adminCompletion: UInt64 = 0x1_1000
  static let data: UInt64 = 0x10_0000

  init(_ rig: Rig, offset: UInt64 = 0) {
    self.rig = rig
    self.offset = offset
  }

  /// A driver whose controller is enabled, with a pair of I/O queues.
  static func ready(_ rig: Rig, offset: UInt64 = 0) -> LiteralDriver {
    let driver = LiteralDriver(rig, offset: offset)
    #expect(driver.enable() && driver.makePair(1) == [0, 0])
    return driver
  }

  /// Bus mastering on, admin queues of 16 entries, CC.EN. Whether it became ready.
  func enable(
    command: PCICommand = [.memorySpace, .busMaster], size: UInt32 = 16, configuration: UInt32 = 0x0046_0001
  ) -> Bool {
    rig.setCommand(command)
    rig.store([UInt8](repeating: 0, count: 0x2000), at: Self.adminSubmission)
    rig.write32(0x24, (size - 1) << 16 | (size - 1))
    rig.write64(0x28, Self.adminSubmission + offset)
    rig.write64(0x30, Self.adminCompletion + offset)
    rig.write32(0x14, configuration)
    queues = [
      0: Queue(submission: Self.adminSubmission, completion: Self.adminCompletion, size: size, completionSize: size)
    ]
    return rig.interrupts.poll { self.rig.read32(0x1c) & 3 != 0 } && rig.read32(0x1c) & 3 == 1
  }

  /// CC.EN 0. Whether it became idle.
  func disable() -> Bool {
    rig.write32(0x14, 0x0046_0000)
    return rig.interrupts.poll { self.rig.read32(0x1c) & 1 == 0 }
  }

  /// Makes a pair of I/O queues at places of their own; statuses of both commands.
  func makePair(_ number: Int, size: UInt32 = 8, vector: UInt32 = 0, interrupts: Bool = false) -> [UInt16?] {
    let at = 0x2_0000 + 0x1_0000 * UInt64(number)
    rig.store([UInt8](repeating: 0, count: 0x2000), at: at)
    let first = admin(
      0x05, pointer1: at + 0x1000 + offset, (10, UInt32(number) | (size - 1) << 16),
      (11, 1 | (interrupts ? 2 : 0) | vector << 16))
    let second = admin(
      0x01, pointer1: at + offset, (10, UInt32(number) | (size - 1) << 16), (11, 1 | UInt32(number) << 16))
    queues[number] = Queue(submission: at, completion: at + 0x1000, size: size, completionSize: size)
    return [first?.status, second?.status]
  }

  /// Writes a command into a queue and moves the tail; the doorbell is rung by ``ring(_:)``. Its identifier.
  @discardableResult
  func post(
    _ queue: Int, _ opcode: UInt32, namespace: UInt32 = 0, pointer1: UInt64 = 0, pointer2: UInt64 = 0, psdt: UInt32 = 0,
    _ dwords: [(Int, UInt32)]
  ) -> UInt16 {
    var words = [UInt32](repeating: 0, count: 16)
    nextIdentifier += 1
    words[0] = opcode | psdt << 14 | UInt32(nextIdentifier) << 16
    words[1] = namespace
    words[6] = UInt32(truncatingIfNeeded: pointer1)
    words[7] = UInt32(truncatingIfNeeded: pointer1 >> 32)
    words[8] = UInt32(truncatingIfNeeded: pointer2)
    words[9] = UInt32(truncatingIfNeeded: pointer2 >> 32)
    for (i, word) in dwords { words[i] = word }
    let q = queues[queue]!
    rig.store(
      words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } },
      at: q.submission + 64 * UInt64(q.tail))
    queues[queue]!.tail = (q.tail + 1) % q.size
    return nextIdentifier
  }

  func ring(_ queue: Int) { rig.write32(0x1000 + 8 * UInt64(queue), queues[queue]!.tail) }

  /// The next answer in a queue, waited for; nil: none came, or the controller failed.
  func take(_ queue: Int, acknowledging: Bool = true) -> Answer? {
    let q = queues[queue]!
    let at = q.completion + 16 * UInt64(q.head)
    guard rig.interrupts.poll({ self.rig.load32(at + 12) >> 16 & 1 == q.phase || self.rig.read32(0x1c) & 2 != 0 })
    else {
      return nil
    }
    let last = rig.load32(at + 12)
    guard last >> 16 & 1 == q.phase else { return nil }
    let third = rig.load32(at + 8)
    queues[queue]!.head += 1
    if queues[queue]!.head == q.completionSize {
      queues[queue]!.head = 0
      queues[queue]!.phase ^= 1
    }
    if acknowledging { acknowledge(queue) }
    return Answer(
      result: rig.load32(at), status: UInt16(truncatingIfNeeded: last >> 17 & 0x7ff), queue: UInt16(third >> 16),
      head: UInt16(third & 0xffff),
      identifier: UInt16(last & 0xffff), retry: last >> 31 == 0)
  }

  func acknowledge(_ queue: Int) { rig.write32(0x1004 + 8 * UInt64(queue), queues[queue]!.head) }

  /// Whether an answer is there that was not taken.
  func hasAnswer(_ queue: Int) -> Bool {
    let q = queues[queue]!
    return rig.load32(q.completion + 16 * UInt64(q.head) + 12) >> 16 & 1 == q.phase
  }

  func admin(
    _ opcode: UInt32, namespace: UInt32 = 0, pointer1: UInt64 = 0, pointer2: UInt64 = 0, psdt: UInt32 = 0,
    _ dwords: (Int, UInt32)...
  ) -> Answer? {
    post(0, opcode, namespace: namespace, pointer1: pointer1, pointer2: pointer2, psdt: psdt, dwords)
    ring(0)
    return take(0)
  }

  /// An I/O command in queue 1.
  func io(
    _ opcode: UInt32, namespace: UInt32 = 1, pointer1: UInt64 = 0, pointer2: UInt64 = 0, psdt: UInt32 = 0,
    _ dwords: (Int, UInt32)...
  ) -> Answer? {
    post(1, opcode, namespace: namespace, pointer1: pointer1, pointer2: pointer2, psdt: psdt, dwords)
    ring(1)
    return take(1)
  }

  /// Has seven reads of two pages each under way.
  func beginReads() {
    for i in 0..<7 as Range<UInt32> {
      post(1, 2, namespace: 1, pointer1: Self.data, pointer2: Self.data + 0x1000, [(10, i), (12, 15)])
    }
    ring(1)
  }

  /// A read (2) or write (1) of `blocks` of 512 bytes; its status.
  func transfer(
    _ opcode: UInt32, block: UInt32, blocks: UInt32, _ pointer1: UInt64, _ pointer2: UInt64 = 0, psdt: UInt32 = 0
  ) -> UInt16? {
    io(opcode, pointer1: pointer1, pointer2: pointer2, psdt: psdt, (10, block), (12, blocks - 1))?.status
  }
}
