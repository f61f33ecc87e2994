internal import DMA

/// One mapping of a ``Domain``: a run of device addresses, and where it leads.
struct Mapping {
  var first: UInt64
  var last: UInt64
  var guest: UInt64
  var permissions: DMAPermissions
}

/// Mappings by address, without overlap, in chunks of up to 128 that a list of the chunks' last addresses leads to.
///
/// Finding is two binary searches. Inserting and removing move the inside of one chunk, and once in 64 times the list
/// of chunks: of a million mappings that is 16 thousand words. Neighbours that together would fill half a chunk become
/// one, so however mappings come and go, there are never more chunks than one for every 32 mappings, and one.
struct MappingList {
  private static let capacity = 128
  private var chunks: [[Mapping]] = []
  /// The last address of each chunk's last mapping.
  private var lasts: [UInt64] = []
  /// Mappings in the list.
  private(set) var count = 0
  /// Bytes of device addresses that are mapped, modulo 2^64.
  private(set) var byteCount: UInt64 = 0

  /// A place in the list: before the mapping that is there, if there is one.
  private struct Position {
    var chunk: Int
    var index: Int
  }

  /// The mapping that holds an address.
  func mapping(at address: UInt64) -> Mapping? {
    guard let found = self[position(endingAtOrAfter: address)], found.first <= address else { return nil }
    return found
  }

  /// Whether some address of `first...last` is mapped.
  func overlaps(_ first: UInt64, _ last: UInt64) -> Bool {
    guard let found = self[position(endingAtOrAfter: first)] else { return false }
    return found.first <= last
  }

  /// Adds a mapping. False, and nothing has changed, when some address of it is mapped already.
  mutating func insert(_ new: Mapping) -> Bool {
    let at = position(endingAtOrAfter: new.first)
    if let next = self[at], next.first <= new.last { return false }
    count += 1
    byteCount &+= new.last &- new.first &+ 1
    if at.chunk == chunks.count {
      // Behind everything: ascending addresses fill chunks to the brim.
      if let last = chunks.indices.last, chunks[last].count < Self.capacity {
        chunks[last].append(new)
        lasts[last] = new.last
      } else {
        var chunk: [Mapping] = []
        chunk.reserveCapacity(Self.capacity)
        chunk.append(new)
        chunks.append(chunk)
        lasts.append(new.last)
      }
      return true
    }
    if chunks[at.chunk].count == Self.capacity {
      let half = Self.capacity / 2
      var upper: [Mapping] = []
      upper.reserveCapacity(Self.capacity)
      upper.append(contentsOf: chunks[at.chunk][half...])
      chunks[at.chunk].removeSubrange(half...)
      chunks.insert(upper, at: at.chunk + 1)
      lasts.insert(lasts[at.chunk], at: at.chunk + 1)
      lasts[at.chunk] = chunks[at.chunk][half - 1].last
      if at.index > half {
        chunks[at.chunk + 1].insert(new, at: at.index - half)
        return true
      }
    }
    chunks[at.chunk].insert(new, at: at.index)
    lasts[at.chunk] = chunks[at.chunk].last!.last
    return true
  }

  /// Takes out every mapping inside `first...last`, and says how many. nil, and nothing has changed, when a mapping is
  /// only partly inside.
  mutating func remove(_ first: UInt64, _ last: UInt64) -> Int? {
    let low = position(endingAtOrAfter: first)
    guard let lowest = self[low], lowest.first <= last else { return 0 }
    guard lowest.first >= first else { return nil }
    var high = position(endingAtOrAfter: last)
    if let highest = self[high], highest.first <= last {
      guard highest.last == last else { return nil }
      high.index += 1
    }
    let before = count
    if low.chunk == high.chunk {
      take(low.chunk, low.index..<high.index)
    } else {
      // From above, so that places below stay what they are.
      if high.chunk < chunks.count { take(high.chunk, 0..<high.index) }
      for chunk in low.chunk + 1..<max(low.chunk + 1, high.chunk) { take(chunk, 0..<chunks[chunk].count) }
      take(low.chunk, low.index..<chunks[low.chunk].count)
    }
    tidy(low.chunk...min(high.chunk, chunks.count - 1))
    return before - count
  }

  /// Every mapping, ascending.
  var all: [Mapping] { Array(chunks.joined()) }

  /// Takes out everything.
  mutating func removeAll() { self = MappingList() }

  private subscript(_ at: Position) -> Mapping? {
    at.chunk < chunks.count && at.index < chunks[at.chunk].count ? chunks[at.chunk][at.index] : nil
  }

  private func position(endingAtOrAfter address: UInt64) -> Position {
    var low = 0
    var high = lasts.count
    while low < high {
      let middle = (low + high) / 2
      if lasts[middle] < address { low = middle + 1 } else { high = middle }
    }
    let chunk = low
    guard chunk < chunks.count else { return Position(chunk: chunk, index: 0) }
    low = 0
    high = chunks[chunk].count
    while low < high {
      let middle = (low + high) / 2
      if chunks[chunk][middle].last < address { low = middle + 1 } else { high = middle }
    }
    return Position(chunk: chunk, index: low)
  }

  private mutating func take(_ chunk: Int, _ range: Range<Int>) {
    for i in range { byteCount &-= chunks[chunk][i].last &- chunks[chunk][i].first &+ 1 }
    count -= range.count
    chunks[chunk].removeSubrange(range)
  }

  /// Drops chunks of the range that became empty, sets right where the others end, and joins what is left with a
  /// neighbour.
  private mutating func tidy(_ range: ClosedRange<Int>) {
    var kept = range.lowerBound
    for chunk in range where !chunks[chunk].isEmpty {
      if kept != chunk { chunks.swapAt(kept, chunk) }
      lasts[kept] = chunks[kept].last!.last
      kept += 1
    }
    chunks.removeSubrange(kept..<range.upperBound + 1)
    lasts.removeSubrange(kept..<range.upperBound + 1)
    for chunk in [range.lowerBound + 1, range.lowerBound, range.lowerBound - 1]
    where chunk >= 0 && chunk + 1 < chunks.count {
      guard chunks[chunk].count + chunks[chunk + 1].count <= Self.capacity / 2 else { continue }
      chunks[chunk].append(contentsOf: chunks[chunk + 1])
      lasts[chunk] = lasts[chunk + 1]
      chunks.remove(at: chunk + 1)
      lasts.remove(at: chunk + 1)
    }
  }
}
