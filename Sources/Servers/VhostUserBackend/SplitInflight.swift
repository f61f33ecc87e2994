internal import DMA
internal import Virtio

/// Remembers a split virtqueue's chains in flight.
///
/// Header: 0 features (8 bytes) · 8 version · 10 descriptors · 12 head of the last batch · 14 used index. Then, for
/// each descriptor, 16 bytes: 0 in flight (one byte) · 6 next of the batch · 8 counter. The process may die between any
/// two stores, so their order is the point:
///
///     popped:     counter, then in flight
///     completing: next of the batch, then head of the last batch              … the used index becomes visible …
///     published:  in flight off for the batch, then the used index
final class SplitInflight: InflightRecorder {
  private let cells: RingMemory
  private let size: UInt16
  private let capacity: UInt16
  private var counter: UInt64 = 0
  private var batch: [UInt16] = []

  /// A recorder in `cells`, which have room for `capacity` descriptors, of a ring with `size` of them.
  init(_ cells: consuming RingMemory, size: UInt16, capacity: UInt16) {
    self.cells = cells
    self.size = size
    self.capacity = capacity
  }

  private func entry(_ index: UInt16) -> Int { 16 + 16 * Int(index) }
  private func isInFlight(_ index: UInt16) -> Bool { cells.load16(at: entry(index)) & 0xff == 1 }

  var mayHoldChains: Bool {
    cells.load16(at: 8) == 1 && cells.load16(at: 10) == capacity && (0..<size).contains(where: isInFlight)
  }

  func resume(at state: QueueState, used: UInt16?, flags: (UInt16) -> UInt16) -> QueueResumption {
    guard cells.load16(at: 8) == 1, cells.load16(at: 10) == capacity else {
      begin(used ?? state.used ?? state.available)
      return QueueResumption(state: state)
    }
    let position = used ?? cells.load16(at: 14)
    // What the last batch published is done, even if its marks are not taken back.
    var head = cells.load16(at: 12)
    var left = used.map { $0 &- cells.load16(at: 14) } ?? 0
    if left <= size {
      while left > 0, head < size {
        cells.store16(0, at: entry(head))
        head = cells.load16(at: entry(head) + 6)
        left -= 1
      }
    }
    cells.storeRelease16(position, at: 14)
    let chains = (0..<size).filter(isInFlight).map { (head: $0, counter: cells.load64(at: entry($0) + 8)) }
      .sorted { $0.counter < $1.counter }
    counter = (chains.last?.counter ?? 0) &+ 1
    // A split ring's used index counts chains, and so does its available index: what was taken is what is done and what
    // is under way.
    var next = state
    next.used = position
    next.available = position &+ UInt16(truncatingIfNeeded: chains.count)
    return QueueResumption(state: next, again: chains.map { InflightChain(id: $0.head, record: $0.head) })
  }

  private func begin(_ used: UInt16) {
    for index in 0..<capacity {
      cells.store64(0, at: entry(index))
      cells.store64(0, at: entry(index) + 8)
    }
    cells.store64(0, at: 0)
    cells.store16(capacity, at: 10)
    cells.store16(0, at: 12)
    cells.store16(used, at: 14)
    cells.storeRelease16(1, at: 8)
  }

  func popped(head: UInt16) -> UInt16 {
    cells.store64(counter, at: entry(head) + 8)
    counter &+= 1
    cells.storeRelease16(1, at: entry(head))
    return head
  }

  func popped(id: UInt16, descriptors: [RingDescriptor]) -> UInt16? { nil }

  func completing(_ record: UInt16) {
    cells.store16(cells.load16(at: 12), at: entry(record) + 6)
    cells.storeRelease16(record, at: 12)
    batch.append(record)
  }

  func published(used: UInt16, wrap: Bool) {
    for record in batch { cells.storeRelease16(0, at: entry(record)) }
    batch.removeAll(keepingCapacity: true)
    cells.storeRelease16(used, at: 14)
  }
}
