/// Holds back completions until those of all chains popped earlier are in (VIRTIO_F_IN_ORDER, §2.7.9, §2.8.9).
struct InOrderWindow {
  private var entries: [Virtqueue.UsedEntry?] = []
  private var next: UInt32 = 0

  mutating func insert(_ entry: Virtqueue.UsedEntry, at sequence: UInt32) {
    let distance = Int(sequence &- next)
    if distance >= entries.count { entries.append(contentsOf: repeatElement(nil, count: distance - entries.count + 1)) }
    entries[distance] = entry
  }

  mutating func popFirst() -> Virtqueue.UsedEntry? {
    guard let first = entries.first, let entry = first else { return nil }
    entries.removeFirst()
    next &+= 1
    return entry
  }
}
