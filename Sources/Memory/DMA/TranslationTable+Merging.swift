/// The change of a table when a run is inserted that grants some accesses and leaves the others as they are.
public struct MappingChange: Sendable {
  /// What to enter, in order: together they cover the run.
  public var pieces: [HostRun] = []
  /// Whether something that was mapped no longer is, or leads elsewhere, or allows less: its users have to be waited
  /// for.
  public var takesAway = false
  /// Whether anything is different afterwards.
  public var isNews = false

  /// A change to `pieces`; by default to nothing.
  public init(pieces: [HostRun] = [], takesAway: Bool = false, isNews: Bool = false) {
    self.pieces = pieces
    self.takesAway = takesAway
    self.isNews = isNews
  }
}

extension TranslationTable {
  /// What entering `run` means if of its permissions only `asked` were asked about: these are granted, and those stay
  /// that are granted already for the same host memory and that `run` allows too.
  ///
  /// Only for the thread that inserts into the table; queues may read meanwhile. The run is one of whole pages.
  public func change(to run: HostRun, granting asked: DMAPermissions) -> MappingChange {
    var change = MappingChange()
    func add(from first: UInt64, through last: UInt64, _ permissions: DMAPermissions) {
      if let before = change.pieces.last, before.permissions == permissions {
        change.pieces[change.pieces.count - 1].last = last
      } else {
        let host = run.host &+ (first - run.start)
        change.pieces.append(HostRun(start: first, last: last, host: host, permissions: permissions))
      }
    }
    let granted = run.permissions.intersection(asked)
    var at = run.start
    while let entry = entry(from: at, through: run.last) {
      let first = max(at, entry.start)
      let last = min(run.last, entry.last)
      if first > at {
        add(from: at, through: first - 1, granted)
        if !granted.isEmpty { change.isNews = true }
      }
      let isSame = entry.leads(whereDoes: run)
      let permissions = isSame ? granted.union(run.permissions.intersection(entry.permissions)) : granted
      if !isSame || permissions != entry.permissions {
        change.isNews = true
        // A part of an entry cannot change alone: the entry goes.
        let isPart = entry.start < run.start || entry.last > run.last
        if !isSame || isPart || !permissions.isSuperset(of: entry.permissions) { change.takesAway = true }
      }
      add(from: first, through: last, permissions)
      if last == run.last { return change }
      at = last + 1
    }
    add(from: at, through: run.last, granted)
    if !granted.isEmpty { change.isNews = true }
    return change
  }

  /// The mapping with the lowest addresses of those that touch the bytes `first` through `last`, or nil.
  func entry(from first: UInt64, through last: UInt64) -> HostRun? {
    let word = unsafe loadAcquire64(root)
    let height = word & 7
    guard height > 0 else { return nil }
    return find(word & ~4095, 3 + 9 * height, base: 0, first, last)
  }

  private func find(_ node: UInt64, _ shift: UInt64, base: UInt64, _ first: UInt64, _ last: UInt64) -> HostRun? {
    let span = shift + 9 >= 64 ? UInt64.max : base | ((1 << (shift + 9)) - 1)
    guard first <= span, last >= base else { return nil }
    var i = (max(first, base) - base) >> shift
    let end = min((min(last, span) - base) >> shift, 511)
    while i <= end {
      // Safe: a node is 4096 bytes, the index is below 512, and only the inserting thread, our caller, frees nodes.
      let word = unsafe loadAcquire64(UnsafeMutableRawPointer(bitPattern: UInt(node)).unsafelyUnwrapped + Int(i) * 8)
      if word & 1 != 0 {
        if let found = find(word & ~4095, shift - 9, base: base + i << shift, first, last) { return found }
      } else if word & 2 != 0 {
        return Self.run(word, shift, around: base + i << shift)
      }
      i += 1
    }
    return nil
  }
}

extension HostRun {
  /// Whether an address in both runs leads to the same byte of host memory.
  public func leads(whereDoes other: HostRun) -> Bool { host &- start == other.host &- other.start }
}
