/// Holds back completions until those of all chains popped earlier are in (VIRTIO_F_IN_ORDER, §2.7.9, §2.8.9).
struct InOrderWindow {
  /// From `start` on, the completions of chain `next` and its successors, as far as they are in.
  private var entries: [Virtqueue.UsedEntry?] = []
  private var start = 0
  private var next: UInt32 = 0

  mutating func insert(_ entry: Virtqueue.UsedEntry, at sequence: UInt32) {
    let place = start + Int(sequence &- next)
    if place >= entries.count { entries.append(contentsOf: repeatElement(nil, count: place - entries.count + 1)) }
    entries[place] = entry
  }

  mutating func popFirst() -> Virtqueue.UsedEntry? {
    guard start < entries.count, let entry = entries[start] else { return nil }
    start += 1
    next &+= 1
    if start == entries.count {
      entries.removeAll(keepingCapacity: true)
      start = 0
    } else if start >= 256, start * 2 >= entries.count {
      // At least as many are dropped as are moved, so each moves once on average.
      entries.removeFirst(start)
      start = 0
    }
    return entry
  }
}
