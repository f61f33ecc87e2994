import DMA

/// How far a queue still looks ahead into the chains behind one that waits.
struct Prefetch {
  var chains = 64
  private var descriptors = 512
  /// Mappings that are looked for.
  var pages = 1024
  /// The longest indirect table that is read, in descriptors: 128 KiB in pages, and three.
  static var tableLimit: Int { 64 }

  /// Whether there is a point in looking at another chain.
  var mayGoOn: Bool { chains > 0 && descriptors > 0 && pages > 0 }

  /// Whether another descriptor may be read.
  mutating func takeDescriptor() -> Bool {
    guard descriptors > 0, pages > 0 else { return false }
    descriptors -= 1
    return true
  }
}

extension Virtqueue {
  /// Asks for what the chains behind the one at the head need, as far as they can be seen: their questions go out with
  /// its own, and when it is done theirs are answered or under way.
  ///
  /// Nothing is taken and nothing is decided. What is wrong with a chain is found when its turn comes; the driver may
  /// write all of it until then.
  mutating func prefetch() {
    guard !isClosing else { return }
    var ahead = Prefetch()
    if isPacked { prefetchPacked(&ahead) } else { prefetchSplit(&ahead) }
  }

  /// Asks for what one descriptor needs.
  mutating func prefetch(_ d: RingDescriptor, _ ahead: inout Prefetch) {
    let isTable = d.flags & RingDescriptor.indirect != 0
    let access: DMAAccess = !isTable && d.flags & RingDescriptor.write != 0 ? .write : .read
    guard iotlb.prefetch(d.address, count: Int(d.length), for: access, limit: &ahead.pages), isTable, hasIndirect else {
      return
    }
    let count = Int(d.length) / 16
    guard count > 0, count <= Prefetch.tableLimit, d.length % 16 == 0 else { return }
    guard (try? loadTable(d)) == true else { return }
    // In the table's order, without checking its chain: a table that holds none is refused in its turn.
    for i in 0..<count where ahead.takeDescriptor() {
      let (first, second) = (scratch.word(i, 0), scratch.word(i, 1))
      let e = isPacked ? packedDescriptor(first, second) : RingDescriptor(first.littleEndian, second.littleEndian)
      let wanted: DMAAccess = e.flags & RingDescriptor.write != 0 ? .write : .read
      _ = iotlb.prefetch(e.address, count: Int(e.length), for: wanted, limit: &ahead.pages)
    }
  }
}
