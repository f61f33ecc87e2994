/// Holds back completions until those of all chains popped earlier are in (VIRTIO_F_IN_ORDER, §2.7.9, §2.8.9).
///
/// It has a place for each descriptor of the ring: more chains are never with the device.
struct InOrderWindow {
  /// The completion of chain `n`, if it is in and not taken yet, is at `n & mask`.
  private var entries: [Virtqueue.UsedEntry?] = []
  private let mask: UInt32
  private var next: UInt32 = 0

  /// A window for a ring of `size` descriptors; nil if completions need no order.
  init(size: UInt16?) {
    guard let size else {
      mask = 0
      return
    }
    let count = size < 2 ? 1 : 1 << (16 - (size - 1).leadingZeroBitCount)
    entries = Array(repeating: nil, count: count)
    mask = UInt32(count - 1)
  }

  mutating func insert(_ entry: Virtqueue.UsedEntry, at sequence: UInt32) { entries[Int(sequence & mask)] = entry }

  mutating func popFirst() -> Virtqueue.UsedEntry? {
    guard let entry = entries[Int(next & mask)] else { return nil }
    entries[Int(next & mask)] = nil
    next &+= 1
    return entry
  }
}
