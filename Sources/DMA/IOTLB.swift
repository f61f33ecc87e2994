/// A queue's private cache over its space, and the only code that turns device addresses into memory.
///
/// Three looks, cheapest first: the last large run, 256 pages by their number, the space's ``TranslationTable``; then the
/// space is asked. What is cached is valid for one generation of the space's fence. One thread uses it, and only between
/// ``beginRound()`` and ``endRound()``.
@safe public struct IOTLB: ~Copyable {
  public let space: any DMASpace
  @usableFromInline let table: TranslationTable?
  @usableFromInline var lease: Lease
  private let waiter: (any TranslationWaiter)?

  @usableFromInline var lastStart: UInt64 = 1
  @usableFromInline var lastEnd: UInt64 = 0
  @usableFromInline var lastDelta: UInt64 = 0
  @usableFromInline var lastPermissions = DMAPermissions()
  /// 256 pairs: page address with its permissions in bits 0 and 1, and host address minus device address.
  @usableFromInline let slots: UnsafeMutablePointer<UInt64>
  @usableFromInline var hits: UInt64 = 0
  private var misses: UInt64 = 0
  /// Marks writes when a migration is under way; read anew with every generation.
  package private(set) var dirtyLog: DirtyLog?

  public init(_ space: any DMASpace, waking waiter: (any TranslationWaiter)? = nil) {
    self.space = space
    self.table = space.table
    self.lease = space.fence.lease()
    self.waiter = waiter
    // Safe: 512 words, initialised here, freed in deinit.
    unsafe slots = .allocate(capacity: 512)
    unsafe slots.initialize(repeating: 0, count: 512)
  }

  deinit {
    unsafe slots.deallocate()
  }

  /// Begins a round. True when mappings changed since the last one: ring areas must be resolved again.
  public mutating func beginRound() -> Bool {
    guard lease.begin() else { return false }
    forget()
    return true
  }

  /// Whether mappings are being taken away: end the round and begin another before resolving more.
  @inlinable public var isStale: Bool { lease.isStale }

  /// Ends a round: mappings may go, and the space hears how often its answer was known.
  public mutating func endRound() {
    lease.end()
    if hits | misses != 0 {
      space.record(hits: hits, misses: misses)
      hits = 0
      misses = 0
    }
  }

  /// A hold for a chain whose segments come from this round.
  @inlinable public func chainLease() -> ChainLease { lease.chain() }

  /// Appends the host memory behind `count` bytes at `address`. Nothing is resolved for a count of 0. On a throw the list may
  /// hold a part of it.
  @inlinable public mutating func resolve(
    _ address: DMAAddress, count: Int, for access: DMAAccess, into segments: inout SegmentList
  ) throws(DMAInterruption) {
    guard count > 0 else { return }
    var a = address.rawValue
    var left = UInt64(count)
    let end = a &+ (left &- 1)
    guard end >= a else { throw .fault(DMAFault(address: address, access: access, reason: .unmapped)) }
    var joins = false
    while true {
      let delta: UInt64
      var n: UInt64
      if a >= lastStart, a <= lastEnd, lastPermissions.allows(access) {
        delta = lastDelta
        n = lastEnd &- a &+ 1
        hits &+= 1
      } else {
        // Safe: the index is below 512.
        let slot = unsafe slots + Int(truncatingIfNeeded: (a &>> 12) & 255) &* 2
        if unsafe slot[0] & ~3 == a & ~4095, unsafe DMAPermissions(rawValue: UInt8(truncatingIfNeeded: slot[0] & 3)).allows(access) {
          delta = unsafe slot[1]
          n = 4096 &- (a & 4095)
          hits &+= 1
        } else {
          (delta, n) = try miss(a, access)
        }
      }
      // `n` is 0 when the run is all 2^64 bytes.
      if n &- 1 >= left &- 1 { n = left }
      segments.append(host: a &+ delta, count: n, joining: joins)
      left &-= n
      if left == 0 { return }
      joins = true
      a &+= n
    }
  }

  /// The host address of `a` minus `a`, and for how many bytes from `a` on that holds (0: all 2^64).
  @usableFromInline mutating func miss(_ a: UInt64, _ access: DMAAccess) throws(DMAInterruption) -> (UInt64, UInt64) {
    let run: HostRun
    if let table, let found = table.run(at: DMAAddress(a)), found.permissions.allows(access) {
      run = found
      hits &+= 1
    } else {
      misses &+= 1
      run = try space.translate(DMAAddress(a), for: access, waking: waiter)
      guard run.permissions.allows(access) else {
        throw .fault(DMAFault(address: DMAAddress(a), access: access, reason: .permission))
      }
    }
    let delta = run.host &- run.start
    let page = a & ~4095
    if run.start <= page, run.last >= page | 4095 {
      let slot = unsafe slots + Int(truncatingIfNeeded: (a >> 12) & 255) * 2
      unsafe slot[0] = page | UInt64(run.permissions.rawValue)
      unsafe slot[1] = delta
    }
    if run.last - run.start != 4095 {
      // Larger than a page, or smaller and so not to be found by page number.
      lastStart = run.start
      lastEnd = run.last
      lastDelta = delta
      lastPermissions = run.permissions
    }
    return (delta, run.last &- a &+ 1)
  }

  /// A ring area of `count` bytes, all of them resolved, scattered or not.
  public mutating func ring(_ address: DMAAddress, count: Int, for access: DMAAccess) throws(DMAInterruption) -> RingMemory {
    precondition(count > 0)
    let first = address.rawValue & ~4095
    guard address.rawValue <= UInt64.max - UInt64(count - 1) else {
      throw .fault(DMAFault(address: address, access: access, reason: .unmapped))
    }
    let lead = Int(address.rawValue & 4095)
    let last = (address.rawValue + UInt64(count - 1)) & ~4095
    var pages: [UInt64] = []
    var at = first
    // All pages are asked for before giving up, so that their answers are under way together.
    var pending = false
    while true {
      do throws(DMAInterruption) {
        // Only bytes of the area may be touched: its first page is entered at the area's start.
        let probe = max(at, address.rawValue)
        let run = try lookUp(probe, access)
        let needed = min(at | 4095, address.rawValue + UInt64(count - 1))
        // Cells are aligned on the device's side (§2.7, §2.8); an odd offset between both sides would undo that.
        guard (run.host &- run.start) & 7 == 0 else {
          throw DMAInterruption.fault(DMAFault(address: DMAAddress(probe), access: access, reason: .discontiguous))
        }
        guard run.last >= needed else {
          throw DMAInterruption.fault(DMAFault(address: DMAAddress(run.last + 1), access: access, reason: .unmapped))
        }
        pages.append(at &+ (run.host &- run.start))
      } catch .pending {
        pending = true
      } catch {
        throw error
      }
      if at == last { break }
      at += 4096
    }
    if pending { throw .pending }
    let isOneRun = pages.indices.allSatisfy { pages[$0] == pages[0] &+ UInt64($0) << 12 }
    // Safe: every page was just resolved for this access, and the caller re-resolves when the generation moves.
    if isOneRun { return unsafe RingMemory(base: UnsafeMutableRawPointer(bitPattern: UInt(pages[0]))! + lead, byteCount: count) }
    return RingMemory(pages: pages, lead: lead, byteCount: count)
  }

  private mutating func lookUp(_ a: UInt64, _ access: DMAAccess) throws(DMAInterruption) -> HostRun {
    if let table, let found = table.run(at: DMAAddress(a)), found.permissions.allows(access) { return found }
    misses &+= 1
    let run = try space.translate(DMAAddress(a), for: access, waking: waiter)
    guard run.permissions.allows(access) else {
      throw .fault(DMAFault(address: DMAAddress(a), access: access, reason: .permission))
    }
    return run
  }

  private mutating func forget() {
    lastStart = 1
    lastEnd = 0
    unsafe slots.update(repeating: 0, count: 512)
    dirtyLog = space.dirtyLog
  }
}
