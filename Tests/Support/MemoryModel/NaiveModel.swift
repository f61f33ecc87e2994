import DMA

/// What memory must look like after each request: flat bytes, a dictionary of pages for each table, and of each page
/// what an IOMMU may still remember. Slow and short on purpose, so that one can see that it is right.
struct NaiveModel {
  /// Where a page of 4 KiB leads.
  struct Entry: Hashable {
    var page: UInt64
    var permissions: DMAPermissions
  }
  struct Table {
    var now: [UInt64: Entry] = [:]
    /// The earlier entry, which may be cached until it is invalidated; nil: there was none.
    var old: [UInt64: Set<Entry?>] = [:]
  }
  /// Whose addresses: everything's, or a table's.
  enum View: Hashable { case physical, table(Int) }
  struct Touch: Hashable {
    var page: UInt64
    var access: DMAAccess
  }
  struct Piece: Hashable {
    var address: DMAAddress
    var length: UInt32
    var access: DMAAccess
  }
  /// What a request leaves behind.
  struct Outcome {
    var fault: DMAFault?
    var written = 0
    var writes: [(guest: UInt64, bytes: ArraySlice<UInt8>)] = []
  }

  var regions: [(start: UInt64, bytes: [UInt8])] = []
  var tables: [Table] = []

  // MARK: Tables

  /// A table has another entry from now on. `remembers`: the old one stays possible until it is invalidated.
  mutating func set(_ table: Int, _ page: UInt64, _ entry: Entry?, remembers: Bool, remembersAbsence: Bool) {
    let before = tables[table].now[page]
    if remembers, before != entry, before != nil || remembersAbsence {
      tables[table].old[page, default: []].insert(before)
    }
    tables[table].now[page] = entry
  }

  /// From now on exactly what the table says.
  mutating func forget(_ table: Int, _ pages: ClosedRange<UInt64>) {
    for page in tables[table].old.keys where pages.contains(page) { tables[table].old[page] = nil }
  }

  /// Where a page may lead.
  func choices(_ view: View, _ page: UInt64) -> [Entry?] {
    switch view {
    case .physical: return [Entry(page: page, permissions: .readWrite)]
    case .table(let table):
      let now = tables[table].now[page]
      return [now] + (tables[table].old[page]?.filter { $0 != now } ?? [])
    }
  }

  // MARK: Memory

  func region(_ guest: UInt64) -> Int? {
    regions.firstIndex { guest >= $0.start && guest - $0.start < UInt64($0.bytes.count) }
  }

  func read(_ guest: UInt64, _ count: Int) -> ArraySlice<UInt8> {
    guard let i = region(guest) else { return [] }
    let at = Int(guest - regions[i].start)
    return regions[i].bytes[at..<at + count]
  }

  mutating func write(_ bytes: ArraySlice<UInt8>, _ guest: UInt64) {
    guard let i = region(guest) else { return }
    let at = Int(guest - regions[i].start)
    regions[i].bytes.replaceSubrange(at..<at + bytes.count, with: bytes)
  }

  // MARK: Requests

  /// The memory behind a piece, page by page, or the first byte of it that cannot be reached.
  func resolve(
    _ piece: Piece, _ view: View, _ choice: [Touch: Entry?]
  ) throws(DMAFault) -> [(guest: UInt64, count: Int)] {
    guard piece.length > 0 else { return [] }
    var at = piece.address.rawValue
    var left = UInt64(piece.length)
    func fault(_ reason: DMAFault.Reason) -> DMAFault {
      DMAFault(address: DMAAddress(at), access: piece.access, reason: reason)
    }
    guard at <= .max - (left - 1) else { throw fault(.unmapped) }
    var found: [(UInt64, Int)] = []
    while true {
      let page = at >> 12
      guard let entry = choice[Touch(page: page, access: piece.access)] ?? choices(view, page)[0] else {
        throw fault(.unmapped)
      }
      guard entry.permissions.allows(piece.access) else { throw fault(.permission) }
      let guest = entry.page << 12 | at & 4095
      guard region(guest) != nil else { throw fault(.unmapped) }
      let count = min(left, 4096 - at & 4095)
      found.append((guest, Int(count)))
      left -= count
      if left == 0 { return found }
      at += count
    }
  }

  /// What a request does, if each page leads where `choice` says: everything is read before anything is written, and a
  /// fault anywhere leaves memory alone.
  func outcome(of pieces: [Piece], _ view: View, key: UInt64, _ choice: [Touch: Entry?]) -> Outcome {
    var read: [UInt8] = []
    var targets: [(guest: UInt64, count: Int)] = []
    do throws(DMAFault) {
      for piece in pieces {
        for (guest, count) in try resolve(piece, view, choice) {
          if piece.access == .read { read += self.read(guest, count) } else { targets.append((guest, count)) }
        }
      }
    } catch { return Outcome(fault: error) }
    let answer = KeyedDevice.answer(to: read, room: targets.reduce(0) { $0 + $1.count }, key: key)
    var outcome = Outcome(written: answer.count)
    var rest = answer[...]
    for (guest, count) in targets where !rest.isEmpty {
      outcome.writes.append((guest, rest.prefix(count)))
      rest = rest.dropFirst(count)
    }
    return outcome
  }

  /// The pages whose answer is open, up to the first that is refused for certain.
  func open(_ pieces: [Piece], _ view: View) -> [Touch] {
    var found: [Touch] = []
    for piece in pieces where piece.length > 0 && piece.address.rawValue <= .max - UInt64(piece.length - 1) {
      let last = (piece.address.rawValue + UInt64(piece.length - 1)) >> 12
      var page = piece.address.rawValue >> 12
      while true {
        let touch = Touch(page: page, access: piece.access)
        let choices = choices(view, page)
        if choices.count > 1, !found.contains(touch) { found.append(touch) }
        let mayPass = choices.contains {
          $0.map { $0.permissions.allows(piece.access) && region($0.page << 12) != nil } ?? false
        }
        if !mayPass { return found }
        if page == last { break }
        page += 1
      }
    }
    return found
  }

  /// Everything that may be left behind: each open page leads to any of its choices.
  func outcomes(of pieces: [Piece], _ view: View, key: UInt64) -> [Outcome] {
    var all: [[Touch: Entry?]] = [[:]]
    for touch in open(pieces, view) {
      all = all.flatMap { known in choices(view, touch.page).map { known.merging([touch: $0]) { $1 } } }
    }
    return all.map { outcome(of: pieces, view, key: key, $0) }
  }
}
