import DMA
public import Virtio

/// A device that answers each buffer with a pattern made from what it read, in random order: the least that shows
/// whether rings and translation deliver.
public struct EchoDevice: VirtioDevice {
  public var id: DeviceID { .entropy }
  public var features: Features { .ring }
  public var maxQueueSizes: [UInt16] { [32768] }
  private let seed: UInt64
  private let mostHeld: Int

  /// - Parameter mostHeld: chains the handler keeps before it completes one; 0: it answers at once.
  public init(seed: UInt64 = 1, mostHeld: Int = 0) {
    self.seed = seed
    self.mostHeld = mostHeld
  }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    EchoHandler(seed: seed, mostHeld: mostHeld)
  }

  /// What the device writes for what it read: byte `i` of `count`.
  public static func answer(to read: [UInt8], count: Int) -> [UInt8] {
    var sum: UInt8 = UInt8(truncatingIfNeeded: read.count)
    for byte in read { sum = sum &* 31 &+ byte }
    return (0..<count).map { sum &+ UInt8(truncatingIfNeeded: $0 &* 7) }
  }
}

final class EchoHandler: QueueHandler {
  private struct Held: ~Copyable {
    var chain: DescriptorChain
    var read: [UInt8]
  }
  private var held: SlotTable<Held>
  private var tags: [(queue: Int, tag: Int)] = []
  private let mostHeld: Int
  private var random: SeededGenerator

  init(seed: UInt64, mostHeld: Int) {
    self.mostHeld = mostHeld
    held = SlotTable(capacity: mostHeld + 1)
    random = SeededGenerator(seed)
  }

  var inFlight: Int { tags.count }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while let chain = try queues[index].next() {
      let read = chain.readable.bytes()
      tags.append((index, held.insert(Held(chain: chain, read: read))))
      if held.isFull { answer(&queues) }
    }
    // A driver that waits for the last one must not wait for ever.
    if mostHeld == 0 { while !tags.isEmpty { answer(&queues) } }
  }

  /// Completes `token` chains.
  func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
    for _ in 0..<min(token, UInt64(tags.count)) { answer(&queues) }
  }

  func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) {
    while !tags.isEmpty { answer(&queues) }
  }

  private func answer(_ queues: inout QueueSet) {
    let (queue, tag) = tags.remove(at: Int.random(in: tags.indices, using: &random))
    guard let entry = held.remove(tag) else { return }
    if entry.chain.fault != nil {
      queues[queue].complete(entry.chain, written: 0)
      return
    }
    // Sometimes less than there is room for.
    let room = entry.chain.writable.byteCount
    let count = random.chance(3, in: 4) ? room : Int.random(in: 0...room, using: &random)
    let n = entry.chain.writable.copy(EchoDevice.answer(to: entry.read, count: count).span, to: 0)
    precondition(n == count)
    queues[queue].complete(entry.chain, written: count)
  }
}
