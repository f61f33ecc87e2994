/// A ring area: bounds-checked cells, each loaded or stored once, with the ordering named.
///
/// The area may be one run of host memory or one run per 4 KiB page of its device addresses: a ring whose pages are
/// scattered works as well as a contiguous one. Cells are aligned, so none straddles two pages. Offsets are bytes from
/// the area's start and come from masked indices: one outside traps, because it is our mistake and never a driver's.
@safe public struct RingMemory: ~Copyable {
  @usableFromInline let base: UnsafeMutableRawPointer
  /// Where each page of a scattered area starts; nil when the area is one run.
  @usableFromInline let pages: UnsafeMutablePointer<UnsafeMutableRawPointer>?
  /// The first byte's offset within the first page of a scattered area.
  @usableFromInline let lead: Int
  public let byteCount: Int
  let owner: HostMapping?
  /// What the area is a copy of, if it is one.
  let remote: RemoteArea?

  init(
    owner: HostMapping? = nil, base: UnsafeMutableRawPointer, byteCount: Int, remote: RemoteArea? = nil
  ) {
    unsafe self.base = base
    unsafe self.pages = nil
    self.lead = 0
    self.byteCount = byteCount
    self.owner = owner
    self.remote = remote
  }

  /// An area of no bytes: every access traps.
  public static var none: RingMemory {
    // Safe: never dereferenced, since no offset is below 0 bytes.
    unsafe RingMemory(base: UnsafeMutableRawPointer(bitPattern: 4096)!, byteCount: 0)
  }

  /// `pages` are the host addresses of each 4 KiB page that the area touches, in order; the area starts `lead` bytes
  /// into the first.
  init(pages list: [UInt64], lead: Int, byteCount: Int) {
    let count = list.count
    // Safe: allocated for `count` elements, all initialised here, freed in deinit.
    let pages = UnsafeMutablePointer<UnsafeMutableRawPointer>.allocate(capacity: count)
    for i in 0..<count {
      // Safe: translations never yield address 0.
      unsafe (pages + i).initialize(to: UnsafeMutableRawPointer(bitPattern: UInt(list[i]))!)
    }
    unsafe self.base = pages[0] + lead
    unsafe self.pages = pages
    self.lead = lead
    self.byteCount = byteCount
    self.owner = nil
    self.remote = nil
  }

  deinit {
    // Safe: allocated in init; pointers are trivial to destroy.
    unsafe pages?.deallocate()
  }

  @inlinable @inline(__always)
  func cell(_ offset: Int, _ width: Int) -> UnsafeMutableRawPointer {
    precondition(offset >= 0 && offset <= byteCount &- width)
    // Safe: the offset was just checked; for a scattered area every page up to byteCount has an entry.
    guard let pages = unsafe pages else { return unsafe base + offset }
    let at = lead + offset
    return unsafe pages[at >> 12] + (at & 4095)
  }

  // A cell is loaded or stored once, whole, in the byte order of the machine. An offset outside the area traps: the
  // queue checks indices first, so that would be our mistake.

  /// Loads the cell of 2 bytes at `offset`.
  @inlinable @inline(__always) public func load16(at offset: Int) -> UInt16 { unsafe DMA.load16(cell(offset, 2)) }
  /// Loads the cell of 2 bytes at `offset`, with acquire order.
  @inlinable @inline(__always) public func loadAcquire16(at offset: Int) -> UInt16 {
    unsafe DMA.loadAcquire16(cell(offset, 2))
  }
  /// Loads the cell of 4 bytes at `offset`.
  @inlinable @inline(__always) public func load32(at offset: Int) -> UInt32 { unsafe DMA.load32(cell(offset, 4)) }
  /// Loads the cell of 4 bytes at `offset`, with acquire order.
  @inlinable @inline(__always) public func loadAcquire32(at offset: Int) -> UInt32 {
    unsafe DMA.loadAcquire32(cell(offset, 4))
  }
  /// Loads the cell of 8 bytes at `offset`.
  @inlinable @inline(__always) public func load64(at offset: Int) -> UInt64 { unsafe DMA.load64(cell(offset, 8)) }
  /// Loads the cell of 8 bytes at `offset`, with acquire order.
  @inlinable @inline(__always) public func loadAcquire64(at offset: Int) -> UInt64 {
    unsafe DMA.loadAcquire64(cell(offset, 8))
  }
  /// Stores the cell of 2 bytes at `offset`.
  @inlinable @inline(__always) public func store16(_ value: UInt16, at offset: Int) {
    unsafe DMA.store16(cell(offset, 2), value)
  }
  /// Stores the cell of 2 bytes at `offset`, with release order.
  @inlinable @inline(__always) public func storeRelease16(_ value: UInt16, at offset: Int) {
    unsafe DMA.storeRelease16(cell(offset, 2), value)
  }
  /// Stores the cell of 4 bytes at `offset`.
  @inlinable @inline(__always) public func store32(_ value: UInt32, at offset: Int) {
    unsafe DMA.store32(cell(offset, 4), value)
  }
  /// Stores the cell of 4 bytes at `offset`, with release order.
  @inlinable @inline(__always) public func storeRelease32(_ value: UInt32, at offset: Int) {
    unsafe DMA.storeRelease32(cell(offset, 4), value)
  }
  /// Stores the cell of 8 bytes at `offset`.
  @inlinable @inline(__always) public func store64(_ value: UInt64, at offset: Int) {
    unsafe DMA.store64(cell(offset, 8), value)
  }
  /// Stores the cell of 8 bytes at `offset`, with release order.
  @inlinable @inline(__always) public func storeRelease64(_ value: UInt64, at offset: Int) {
    unsafe DMA.storeRelease64(cell(offset, 8), value)
  }

  /// Puts a value into the cell of eight bytes at `offset` and returns what was there, in one step.
  public func exchange64(_ value: UInt64, at offset: Int) -> UInt64 { unsafe DMA.exchange64(cell(offset, 8), value) }

  /// Loads the two words of the descriptor at `offset`, a multiple of 16 in an area aligned to 16: the first word
  /// first.
  @inlinable @inline(__always) public func loadPair(at offset: Int) -> (UInt64, UInt64) {
    let at = unsafe cell(offset, 16)
    return unsafe (DMA.load64(at), DMA.load64(at + 8))
  }

  /// As ``loadPair(at:)``, but the second word first, with acquire order.
  @inlinable @inline(__always) public func loadPairBackwards(at offset: Int) -> (UInt64, UInt64) {
    let at = unsafe cell(offset, 16)
    let second = unsafe DMA.loadAcquire64(at + 8)
    return unsafe (DMA.load64(at), second)
  }

  /// Orders everything before it with everything after it, on every processor: between publishing an index and reading
  /// whether the other side wants a notification.
  @inlinable @inline(__always) public static func fence() { fullFence() }

  /// Marks `count` bytes at `offset` in the dirty log.
  package func markDirty(_ log: DirtyLog, at offset: Int, count: Int) {
    var offset = offset
    let end = offset + count
    while offset < end {
      let step = unsafe pages == nil ? end - offset : min(end - offset, 4096 - ((lead + offset) & 4095))
      log.mark(host: unsafe UInt64(UInt(bitPattern: cell(offset, 1))), count: step)
      offset += step
    }
  }
}
