import Synchronization

/// Mappings from device addresses to host memory, in a radix tree that queues walk without a lock.
///
/// Each level resolves nine bits, like a processor's page table; the tree is as high as the highest mapped address
/// needs, and a mapping that is large and aligned enough takes one entry at an upper level. One word holds an entry, so
/// a reader sees it whole or not at all. Removing a mapping clears words; nodes are given back to the system only in
/// ``removeAll(drained:used:)``, after the fence says that no reader is left.
///
/// Mappings are kept at 4 KiB granularity: device address, host address and size are multiples of it.
@safe public final class TranslationTable: @unchecked Sendable {
  // Safe (unchecked Sendable): entries are atomic words; everything else is written under the mutex.
  //
  // A word: 0 nothing · bit 0 set: the rest points to a node · bit 1 set: a mapping, bits 2 and 3 its permissions.
  // `root` is a node's address with the tree's height (1...6) in its low bits, or 0.
  @usableFromInline let root: UnsafeMutableRawPointer
  private struct Counts: ~Copyable {
    var nodes = TableNodes()
    var mappings = 0
    var pages: UInt64 = 0
    var peak: UInt64 = 0
    var isFull = false
  }
  private let counts = Mutex(Counts())
  /// How many nodes of 4 KiB the tree may have. A peer that maps sparsely enough to need more makes ``insert(_:)``
  /// refuse.
  public let maxNodes: Int

  public static var granule: UInt64 { 4096 }

  public init(maxNodes: Int = 1 << 15) {
    self.maxNodes = maxNodes
    // Safe: one zeroed word on a line of its own, freed in deinit.
    unsafe root = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
    unsafe root.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
  }

  deinit {
    unsafe root.deallocate()
  }

  /// Bytes that can be reached through the table now.
  public var byteCount: UInt64 { counts.withLock { Self.bytes($0.pages) } }
  /// The most that ``byteCount`` has been.
  public var peakByteCount: UInt64 { counts.withLock { Self.bytes($0.peak) } }
  /// All 2^64 bytes are one more than can be said.
  private static func bytes(_ pages: UInt64) -> UInt64 { pages >> 52 == 0 ? pages << 12 : .max }
  /// Whether an entry was refused for want of a node. Nodes stay when their entries go: only
  /// ``removeAll(drained:used:)`` helps.
  public var isFull: Bool { counts.withLock { $0.isFull } }
  /// Entries in force.
  public var mappings: Int { counts.withLock { $0.mappings } }

  /// Enters a mapping, replacing what was there. False when it is not page-aligned or the tree is full: then nothing
  /// changed that a later ``remove(from:through:)`` would not undo.
  public func insert(_ run: HostRun) -> Bool {
    guard run.isWholePages, !run.isRemote else { return false }
    return counts.withLock { counts in
      var at = run.start
      var host = run.host
      while true {
        let left = run.last - at
        // The largest entry that fits here: aligned on the device's side and not longer than what is left.
        var shift: UInt64 = 12
        while shift < 39, at & ((1 << (shift + 9)) - 1) == 0, left >= (1 << (shift + 9)) - 1 { shift += 9 }
        guard put(at, shift, host | 2 | UInt64(run.permissions.rawValue) << 2, &counts) else { return false }
        let size: UInt64 = 1 << shift
        if left < size { break }
        at += size
        host &+= size
      }
      counts.peak = max(counts.peak, counts.pages)
      return true
    }
  }

  /// Removes every mapping that touches the bytes `first` through `last`. An entry that is only partly inside goes
  /// whole. Returns how many went. Use ends when the fence is drained.
  @discardableResult public func remove(from first: UInt64, through last: UInt64) -> Int {
    guard first <= last else { return 0 }
    return counts.withLock { counts in
      let word = unsafe load64(root)
      let height = Int(word & 7)
      guard height > 0 else { return 0 }
      let before = counts.mappings
      clear(word & ~4095, UInt64(12 + 9 * (height - 1)), base: 0, first, last, &counts)
      return before - counts.mappings
    }
  }

  /// Removes everything, waits on `fence` until no queue looks in it, and no chain uses the bytes of `used`, and frees
  /// the nodes.
  public func removeAll(drained fence: TranslationFence, used: ClosedRange<UInt64> = 0...UInt64.max) {
    let nodes = counts.withLock { counts in
      unsafe storeRelease64(root, 0)
      var nodes = TableNodes()
      swap(&nodes, &counts.nodes)
      counts.isFull = false
      counts.mappings = 0
      counts.pages = 0
      return nodes
    }
    fence.drain(forgetting: 0...UInt64.max, used: used)
    _ = consume nodes
  }

  /// The entry around an address, or nil. Under a lease only.
  @inlinable public func run(at address: DMAAddress) -> HostRun? {
    let found = unsafe Self.look(root, address.rawValue)
    return found.word & 2 != 0 ? Self.run(found.word, found.shift, around: address.rawValue) : nil
  }

  /// An entry, how many bits of the address lie within it, and the node that holds it (0: there is none).
  @usableFromInline struct Entry {
    @usableFromInline var word: UInt64
    @usableFromInline var shift: UInt64
    @usableFromInline var node: UInt64
    @inlinable init(word: UInt64, shift: UInt64, node: UInt64) {
      self.word = word
      self.shift = shift
      self.node = node
    }
  }

  /// Walks down from `root`, for a queue that holds the table and must not pay for a reference each time.
  @inlinable static func look(_ root: UnsafeMutableRawPointer, _ a: UInt64) -> Entry {
    var word = unsafe loadAcquire64(root)
    let height = word & 7
    guard height > 0 else { return Entry(word: 0, shift: 0, node: 0) }
    var shift = 3 &+ 9 &* height
    guard shift &+ 9 >= 64 || a &>> (shift &+ 9) == 0 else { return Entry(word: 0, shift: 0, node: 0) }
    while true {
      let at = word & ~4095
      // Safe: a node is 4096 bytes and the index is below 512; nodes live until a drain.
      let node = unsafe UnsafeMutableRawPointer(bitPattern: UInt(at)).unsafelyUnwrapped
      word = unsafe loadAcquire64(node + Int((a &>> shift) & 511) &* 8)
      guard word & 1 != 0 else { return Entry(word: word, shift: shift, node: at) }
      shift &-= 9
    }
  }

  /// What a mapping's word says about the addresses around `a`.
  @inlinable static func run(_ word: UInt64, _ shift: UInt64, around a: UInt64) -> HostRun {
    let mask = (UInt64(1) &<< shift) &- 1
    return HostRun(
      start: a & ~mask, last: a | mask, host: word & ~4095,
      permissions: DMAPermissions(rawValue: UInt8(truncatingIfNeeded: (word &>> 2) & 3)))
  }

  // MARK: Writing, under the mutex

  private func newNode(_ counts: inout Counts) -> UInt64? {
    // 512 zeroed words, page-aligned so that the low bits are free.
    if counts.nodes.count < maxNodes, let node = counts.nodes.take() { return node }
    counts.isFull = true
    return nil
  }

  private func cell(_ node: UInt64, _ index: UInt64) -> UnsafeMutableRawPointer {
    // Safe: nodes are ours, 4096 bytes; the index is masked.
    unsafe UnsafeMutableRawPointer(bitPattern: UInt(node))! + Int(index & 511) * 8
  }

  private func put(_ address: UInt64, _ shift: UInt64, _ entry: UInt64, _ counts: inout Counts) -> Bool {
    // Grow the tree upwards until it covers the address.
    var top = unsafe load64(root)
    while top & 7 == 0 || !covers(top & 7, address) || 12 + 9 * ((top & 7) - 1) < shift {
      guard let node = newNode(&counts) else { return false }
      if top & 7 == 0 {
        // As high as this entry needs at once: an empty lower node would split it into pages.
        var height: UInt64 = 1
        while !covers(height, address) || 12 + 9 * (height - 1) < shift { height += 1 }
        top = node | height
      } else {
        unsafe store64(cell(node, 0), (top & ~4095) | 1)
        top = node | (top & 7) + 1
      }
      unsafe storeRelease64(root, top)
    }
    var node = top & ~4095
    var at = 12 + 9 * ((top & 7) - 1)
    while at > shift {
      let p = unsafe cell(node, address >> at)
      let word = unsafe load64(p)
      if word & 1 != 0 {
        node = word & ~4095
      } else {
        guard let fresh = newNode(&counts) else { return false }
        // A larger mapping was here: it is replaced, not split. The caller's peer asks again for the rest.
        forget(word, at, &counts)
        unsafe storeRelease64(p, fresh | 1)
        node = fresh
      }
      at -= 9
    }
    let p = unsafe cell(node, address >> at)
    let word = unsafe load64(p)
    if word & 1 != 0 {
      // Smaller mappings lie under this entry: they go, their node stays linked and maps page by page instead.
      return fill(word & ~4095, at - 9, entry, &counts)
    }
    forget(word, at, &counts)
    counts.mappings += 1
    counts.pages += 1 << (at - 12)
    unsafe storeRelease64(p, entry)
    return true
  }

  private func fill(_ node: UInt64, _ shift: UInt64, _ entry: UInt64, _ counts: inout Counts) -> Bool {
    for i in 0..<UInt64(512) {
      let p = unsafe cell(node, i)
      let word = unsafe load64(p)
      let part = entry &+ i << shift
      if word & 1 != 0 {
        guard fill(word & ~4095, shift - 9, part, &counts) else { return false }
        continue
      }
      forget(word, shift, &counts)
      counts.mappings += 1
      counts.pages += 1 << (shift - 12)
      unsafe storeRelease64(p, part)
    }
    return true
  }

  private func forget(_ word: UInt64, _ shift: UInt64, _ counts: inout Counts) {
    guard word & 2 != 0 else { return }
    counts.mappings -= 1
    counts.pages -= 1 << (shift - 12)
  }

  private func covers(_ height: UInt64, _ address: UInt64) -> Bool {
    let bits = 12 + 9 * height
    return bits >= 64 || address >> bits == 0
  }

  private func clear(
    _ node: UInt64, _ shift: UInt64, base: UInt64, _ first: UInt64, _ last: UInt64, _ counts: inout Counts
  ) {
    let span = shift + 9 >= 64 ? UInt64.max : base | ((1 << (shift + 9)) - 1)
    guard first <= span, last >= base else { return }
    var i = (max(first, base) - base) >> shift
    let end = (min(last, span) - base) >> shift
    while i <= min(end, 511) {
      let p = unsafe cell(node, i)
      let word = unsafe load64(p)
      if word & 1 != 0 {
        clear(word & ~4095, shift - 9, base: base + i << shift, first, last, &counts)
      } else if word & 2 != 0 {
        forget(word, shift, &counts)
        unsafe storeRelease64(p, 0)
      }
      i += 1
    }
  }
}
