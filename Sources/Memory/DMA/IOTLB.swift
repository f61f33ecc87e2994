/// A queue's private cache over its space, and the only code that turns device addresses into memory.
///
/// Looks, cheapest first: the largest run seen; the space's ``TranslationTable``, entered at the node that holds an
/// address's page; then, out of line, another large run, 256 pages by their number, and the table from its root; then
/// the space is asked. What is cached is valid for one generation of the space's fence. One thread uses it, and only
/// between ``beginRound()`` and ``endRound()``.
@safe public struct IOTLB: ~Copyable {
  public let space: any DMASpace
  /// Kept alive for `root`, which names its first word: to use the table itself would count references.
  let table: TranslationTable?
  @usableFromInline let root: UnsafeMutableRawPointer?
  @usableFromInline var lease: Lease
  let waiter: (any TranslationWaiter)?
  private let areas: [ClosedRange<UInt64>]
  private let ledger: LookUpStatistics?
  private let counters: LookUpCounters?
  /// Whether the walk under way, or an earlier one of the same chain, had to ask; see ``endWalk(repeats:)``.
  @usableFromInline package internal(set) var hasAsked = false
  /// Pages that the walk may still meet without an answer; see ``mayAsk``.
  var asksLeft = IOTLB.mostAsksPerWalk
  /// The first byte that the walk under way met without an answer, as the fault that it becomes if none helps.
  public internal(set) var firstMissing: DMAFault?

  /// The largest run seen, grown by what adjoins it.
  @usableFromInline var lastStart: UInt64 = 1
  @usableFromInline var lastEnd: UInt64 = 0
  @usableFromInline var lastDelta: UInt64 = 0
  @usableFromInline var lastPermissions = DMAPermissions()
  /// 256 pairs, at ``leafIndex(_:)``: the number of a 2 MiB block plus 1, and the table's node for it. A node lives
  /// until a drain.
  @usableFromInline let leaves: UnsafeMutablePointer<UInt64>
  /// The last run that was neither larger than the largest nor next to it.
  var other = HostRun(start: 1, last: 0, host: 0, permissions: [])
  /// Looks that ``extend(_:_:)`` may still take in this generation: a mapping of 1 GiB has 512 entries of 2 MiB.
  private var probes = 0
  /// 256 pairs: page address with its permissions in bits 0 and 1, and host address minus device address. Only of
  /// spaces without a table.
  private let slots: UnsafeMutablePointer<UInt64>
  @usableFromInline var hits: UInt64 = 0
  var misses: UInt64 = 0
  /// What hears of the queue's chains, if its space wants to.
  @usableFromInline let observer: (any ChainObserver)?
  /// Marks writes when a migration is under way; read anew with every generation.
  package private(set) var dirtyLog: DirtyLog?

  /// A cache over `space`.
  ///
  /// - Parameters:
  ///   - waiter: woken when a pending translation arrived.
  ///   - areas: device addresses of a ring: ``beginRound()`` reports when they changed, and every chain in flight holds
  ///     them.
  public init(_ space: any DMASpace, waking waiter: (any TranslationWaiter)? = nil, areas: [ClosedRange<UInt64>] = []) {
    self.space = space
    let table = space.table
    self.table = table
    observer = space.makeChainObserver()
    // Safe: the word lives as long as the table, which this value holds.
    unsafe self.root = table?.root
    self.areas = areas
    self.lease = space.fence.lease(areas: areas)
    self.waiter = waiter
    ledger = space.ledger
    counters = ledger?.open()
    // Safe: 512 words each, initialised here, freed in deinit.
    unsafe slots = .allocate(capacity: 512)
    unsafe slots.initialize(repeating: 0, count: 512)
    unsafe leaves = .allocate(capacity: 512)
    unsafe leaves.initialize(repeating: 0, count: 512)
  }

  deinit {
    if hasAsked { _ = space.walkEnded(waiter, repeats: false) }
    if let counters { ledger?.close(counters) }
    unsafe slots.deallocate()
    unsafe leaves.deallocate()
  }

  /// Begins a round. True when mappings under the ring areas were taken away since the last one, or any if there are no
  /// areas: they must be resolved again. What is cached of others stays.
  public mutating func beginRound() -> Bool {
    let before = lease.generation
    guard lease.begin() else { return false }
    return forgetChanges(since: before)
  }

  /// Whether mappings are being taken away: end the round and begin another before resolving more.
  @inlinable public var isStale: Bool { lease.isStale }

  /// Ends a round: mappings may go, and the space's ledger shows how often its answer was known.
  public mutating func endRound() {
    lease.end()
    counters?.store(hits: hits, misses: misses)
  }

  /// Storage for chains that are resolved with this cache and outlive their round: at most `limit` blocks are kept.
  public func makePool(keeping limit: Int = 64) -> SegmentPool { SegmentPool(lease.holds, keeping: limit) }

  /// Whether a chain resolved with this cache is neither given back nor dropped. Takes a lock: for a queue that stops.
  package var hasChains: Bool { lease.holds.hasChains }

  /// As ``Lease/hold(from:through:)``.
  package func hold(from first: UInt64 = 0, through last: UInt64 = .max) -> MappingHold {
    lease.hold(from: first, through: last)
  }

  /// Appends the host memory behind `count` bytes at `address`. Nothing is resolved for a count of 0. On a throw the
  /// list may hold a part of it.
  @inlinable @inline(__always) public mutating func resolve(
    _ address: DMAAddress, count: Int, for access: DMAAccess, into segments: inout SegmentList
  ) throws(DMAInterruption) {
    guard count > 0, !resolveAtOnce(address, count: count, for: access, into: &segments) else { return }
    try resolveHere(address.rawValue, UInt64(count &- 1), access, &segments)
  }

  /// Does what ``resolve(_:count:for:into:)`` does if all of at least one byte is known, in one place, and the list has
  /// room: nearly always. Otherwise false, with nothing done.
  @inlinable @inline(__always) package mutating func resolveAtOnce(
    _ address: DMAAddress, count: Int, for access: DMAAccess, into segments: inout SegmentList
  ) -> Bool {
    guard segments.hasRoom else { return false }
    let a = address.rawValue
    let last = a &+ UInt64(truncatingIfNeeded: count &- 1)
    // All in the largest run: memory that is not translated, or one mapping of all of it.
    if a >= lastStart, last <= lastEnd, last >= a, lastPermissions.allows(access) {
      hits &+= 1
      segments.put(host: a &+ lastDelta, from: a, through: last)
      return true
    }
    // All in one page.
    guard a ^ last <= 4095 else { return false }
    let word = pageWord(a)
    let needed = Self.needed(access)
    guard word & needed == needed else { return false }
    hits &+= 1
    segments.put(host: word & ~4095 | a & 4095, from: a, through: last)
    return true
  }

  /// The entry for a page in its cached table node; 0 if the node is not cached.
  @inlinable @inline(__always) func pageWord(_ a: UInt64) -> UInt64 {
    let block = (a &>> 21) &+ 1
    // Safe: the index is below 512; a node is 4096 bytes, the index in it below 512, and it lives until a drain.
    let leaf = unsafe leaves + Self.leafIndex(block)
    guard unsafe leaf[0] == block else { return 0 }
    let node = unsafe UnsafeMutableRawPointer(bitPattern: UInt(leaf[1])).unsafelyUnwrapped
    return unsafe loadAcquire64(node + Int(truncatingIfNeeded: (a &>> 12) & 511) &* 8)
  }

  /// Where in `leaves` a block belongs, which is named by its number plus 1. Blocks at any regular distance spread over
  /// all pairs, as their number's lowest bits would not: the top bits of a multiple of the golden ratio's fraction do
  /// (Knuth 6.4).
  @inlinable @inline(__always) static func leafIndex(_ block: UInt64) -> Int {
    Int(truncatingIfNeeded: (block &* 0x9E37_79B9_7F4A_7C15) &>> 56) &* 2
  }

  /// A mapping (bit 1) that allows the access (bits 2 and 3).
  @inlinable @inline(__always) static func needed(_ access: DMAAccess) -> UInt64 { access == .read ? 6 : 10 }

  /// Piece by piece, what ``resolve(_:count:for:into:)`` does not find in one place: `beyond` bytes after the one at
  /// `first`.
  @usableFromInline mutating func resolvePieces(
    _ first: UInt64, _ beyond: UInt64, _ access: DMAAccess, _ segments: inout SegmentList
  ) throws(DMAInterruption) {
    var a = first
    var left = beyond + 1
    guard a <= .max - beyond else { throw .fault(DMAFault(address: DMAAddress(a), access: access, reason: .unmapped)) }
    let needed = Self.needed(access)
    var joins = false
    while true {
      var delta: UInt64
      var n: UInt64
      if a >= lastStart, a <= lastEnd, lastPermissions.allows(access) {
        delta = lastDelta
        n = lastEnd &- a &+ 1
        hits &+= 1
      } else {
        let word = pageWord(a)
        if word & needed == needed {
          delta = (word & ~4095) &- (a & ~4095)
          n = 4096 &- (a & 4095)
          hits &+= 1
        } else {
          let isRemote: Bool
          (delta, n, isRemote) = try miss(a, access)
          if isRemote {
            if n &- 1 >= left &- 1 { n = left }
            delta = try copy(a, n, access, &segments) &- a
          }
        }
      }
      // `n` is 0 when the run is all 2^64 bytes.
      if n &- 1 >= left &- 1 { n = left }
      if joins {
        segments.join(host: a &+ delta, count: n, device: a)
      } else {
        segments.append(host: a &+ delta, count: n, device: a)
      }
      left &-= n
      if left == 0 { return }
      joins = true
      a &+= n
    }
  }

  /// The host address of `a` minus `a`, and for how many bytes from `a` on that holds (0: all 2^64). True: there is no
  /// host address, for so many bytes.
  private mutating func miss(_ a: UInt64, _ access: DMAAccess) throws(DMAInterruption) -> (UInt64, UInt64, Bool) {
    if other.contains(DMAAddress(a)), other.permissions.allows(access) {
      hits &+= 1
      return (other.host &- other.start, other.last &- a &+ 1, false)
    }
    if let root = unsafe root {
      let entry = unsafe TranslationTable.look(root, a)
      if entry.word & 2 != 0 {
        var run = TranslationTable.run(entry.word, entry.shift, around: a)
        if run.permissions.allows(access) {
          hits &+= 1
          if entry.shift == 12 {
            // Safe: the index is below 512.
            let leaf = unsafe leaves + Self.leafIndex((a >> 21) + 1)
            unsafe leaf[0] = (a >> 21) + 1
            unsafe leaf[1] = entry.node
          } else {
            unsafe extend(&run, root)
            keep(run)
          }
          return (run.host &- run.start, run.last &- a &+ 1, false)
        }
      }
    } else {
      // Safe: the index is below 512.
      let slot = unsafe slots + Int(truncatingIfNeeded: (a >> 12) & 255) * 2
      if unsafe slot[0] & ~3 == a & ~4095,
        unsafe DMAPermissions(rawValue: UInt8(truncatingIfNeeded: slot[0] & 3)).allows(access)
      {
        hits &+= 1
        return (unsafe slot[1], 4096 &- (a & 4095), false)
      }
    }
    let run = try ask(a, access)
    if run.isRemote { return (0, run.last &- a &+ 1, true) }
    let page = a & ~4095
    if unsafe root == nil, run.start <= page, run.last >= page | 4095 {
      // Safe: as above.
      let slot = unsafe slots + Int(truncatingIfNeeded: (a >> 12) & 255) * 2
      unsafe slot[0] = page | UInt64(run.permissions.rawValue)
      unsafe slot[1] = run.host &- run.start
    }
    // Larger than a page, or smaller and so not to be found by page number.
    if run.last - run.start != 4095 { keep(run) }
    return (run.host &- run.start, run.last &- a &+ 1, false)
  }

  /// Adds what adjoins a run in the table on both sides: a table's large entries are pieces of larger mappings.
  private mutating func extend(_ run: inout HostRun, _ root: UnsafeMutableRawPointer) {
    while probes > 0, run.last != .max {
      probes -= 1
      let entry = unsafe TranslationTable.look(root, run.last + 1)
      guard entry.word & 2 != 0 else { break }
      let next = TranslationTable.run(entry.word, entry.shift, around: run.last + 1)
      guard next.permissions == run.permissions, next.host &- next.start == run.host &- run.start else { break }
      run.last = next.last
    }
    while probes > 0, run.start != 0 {
      probes -= 1
      let entry = unsafe TranslationTable.look(root, run.start - 1)
      guard entry.word & 2 != 0 else { break }
      let next = TranslationTable.run(entry.word, entry.shift, around: run.start - 1)
      guard next.permissions == run.permissions, next.host &- next.start == run.host &- run.start else { break }
      run.host = next.host
      run.start = next.start
    }
  }

  /// Remembers a run; what adjoins the largest one is added to it.
  private mutating func keep(_ run: HostRun) {
    let delta = run.host &- run.start
    let isSame = lastStart <= lastEnd && delta == lastDelta && run.permissions == lastPermissions
    if isSame, run.start <= lastEnd &+ 1 || lastEnd == .max, lastStart <= run.last &+ 1 || run.last == .max {
      lastStart = min(lastStart, run.start)
      lastEnd = max(lastEnd, run.last)
    } else if lastStart > lastEnd || run.last - run.start >= lastEnd - lastStart {
      if lastStart <= lastEnd {
        other = HostRun(start: lastStart, last: lastEnd, host: lastStart &+ lastDelta, permissions: lastPermissions)
      }
      lastStart = run.start
      lastEnd = run.last
      lastDelta = delta
      lastPermissions = run.permissions
    } else {
      other = run
    }
  }

  /// Drops what is cached of mappings that were taken away after generation `old`. True if ring areas are among them.
  private mutating func forgetChanges(since old: UInt64) -> Bool {
    var touchesAreas = areas.isEmpty
    let fence = lease.fence
    let known =
      old != .max
      && fence.changes(since: old, upTo: lease.generation) { first, last in
        if first == 0, last == .max {
          // Nodes of the table may have gone, or writes are to be logged from now on.
          forgetAll()
          touchesAreas = true
          return
        }
        forget(from: first, through: last)
        if areas.contains(where: { $0.overlaps(first...last) }) { touchesAreas = true }
      }
    if known { return touchesAreas }
    forgetAll()
    return true
  }

  private mutating func forget(from first: UInt64, through last: UInt64) {
    probes = 1024
    if lastStart <= last, first <= lastEnd {
      lastStart = 1
      lastEnd = 0
    }
    if other.overlaps(from: first, through: last) { other = HostRun(start: 1, last: 0, host: 0, permissions: []) }
    // `leaves` leads to the table's own words, which say what is so. `slots` are copies.
    guard unsafe root == nil else { return }
    guard last - first < 256 << 12 else { return unsafe slots.update(repeating: 0, count: 512) }
    for page in first >> 12...last >> 12 {
      // Safe: the index is below 512.
      unsafe slots[Int(truncatingIfNeeded: page & 255) * 2] = 0
    }
  }

  private mutating func forgetAll() {
    lastStart = 1
    lastEnd = 0
    other = HostRun(start: 1, last: 0, host: 0, permissions: [])
    probes = 1024
    // The one of the two that is in use.
    if unsafe root == nil {
      unsafe slots.update(repeating: 0, count: 512)
    } else {
      unsafe leaves.update(repeating: 0, count: 512)
    }
    dirtyLog = space.dirtyLog
  }
}
