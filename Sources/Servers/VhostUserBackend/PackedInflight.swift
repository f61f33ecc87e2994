internal import DMA
internal import Virtio

/// Remembers a packed virtqueue's chains in flight, with their descriptors: the ring's own may be overwritten before
/// the chain is done.
///
/// Header: 0 features (8 bytes) · 8 version · 10 descriptors · 12 free · 14 old free · 16 used · 18 old used · 20 used
/// wrap counter (one byte) · 21 old one. Then, for each descriptor, 32 bytes: 0 in flight (one byte) · 2 next · 4 last
/// · 6 descriptors in the chain · 8 counter · 16 buffer ID · 18 flags · 20 length · 24 address. Entries form a list of
/// free ones and a list for each chain. The process may die between any two stores: a chain counts once "old free" has
/// moved past it, and is done once the old used position has.
final class PackedInflight: InflightRecorder {
  private let cells: RingMemory
  private let size: UInt16
  private let capacity: UInt16
  private var counter: UInt64 = 0
  private var free: UInt16 = 0
  private var used: UInt16 = 0
  private var usedWrap = true
  /// The list of free entries, as far as it can be believed.
  private var freeCount = 0

  /// A recorder in `cells`, which have room for `capacity` descriptors, of a ring with `size` of them.
  init(_ cells: consuming RingMemory, size: UInt16, capacity: UInt16) {
    self.cells = cells
    self.size = size
    self.capacity = capacity
  }

  private func entry(_ index: UInt16) -> Int { 32 + 32 * Int(index) }

  private struct Chain {
    var first: UInt16
    var counter: UInt64
    var descriptors: [RingDescriptor]
  }

  // MARK: Taking over

  var mayHoldChains: Bool {
    cells.load16(at: 8) == 1 && cells.load16(at: 10) == capacity
      && (0..<capacity).contains { cells.load16(at: entry($0)) & 0xff == 1 }
  }

  func resume(at state: QueueState, used ringUsed: UInt16?, flags: (UInt16) -> UInt16) -> QueueResumption {
    guard cells.load16(at: 8) == 1, cells.load16(at: 10) == capacity, isPlausible else {
      begin(state)
      return QueueResumption(state: state)
    }
    let wraps = cells.load16(at: 20)
    let isWrapped = wraps & 0xff != 0
    let wasWrapped = wraps >> 8 != 0
    let oldUsed = cells.load16(at: 18)
    free = cells.load16(at: 14)
    used = oldUsed
    usedWrap = wasWrapped
    if (cells.load16(at: 16), isWrapped) != (oldUsed, wasWrapped) {
      // A process died while it completed a chain. If the driver can see the used entry, the chain is done.
      let available: UInt16 = wasWrapped ? 1 << 7 : 1 << 15
      if flags(oldUsed) & (1 << 7 | 1 << 15) != available {
        free = cells.load16(at: 12)
        used = cells.load16(at: 16)
        usedWrap = isWrapped
      }
    }
    storeHeader()
    let isFree = freeEntries()
    freeCount = isFree.filter { $0 }.count
    for index in 0..<capacity where isFree[Int(index)] { cells.store16(0, at: entry(index)) }
    let chains = (0..<capacity).filter { !isFree[Int($0)] && cells.load16(at: entry($0)) & 0xff == 1 }.compactMap(chain)
      .sorted { $0.counter < $1.counter }
    counter = (chains.last?.counter ?? 0) &+ 1
    // Slots between used and available are those of the chains under way.
    var next = QueueState(available: used, availableWrap: usedWrap, used: used, usedWrap: usedWrap)
    for chain in chains { next.advanceAvailable(by: UInt16(chain.descriptors.count), size: size) }
    return QueueResumption(
      state: next,
      again: chains.map { InflightChain(id: $0.descriptors.last!.id, descriptors: $0.descriptors, record: $0.first) })
  }

  private var isPlausible: Bool {
    cells.load16(at: 12) <= capacity && cells.load16(at: 14) <= capacity && cells.load16(at: 16) < size
      && cells.load16(at: 18) < size
  }

  /// Which entries the list of free ones names; it may end early, or run in a circle, if the memory is not what it
  /// should be.
  private func freeEntries() -> [Bool] {
    var isFree = [Bool](repeating: false, count: Int(capacity))
    var at = free
    while at < capacity, !isFree[Int(at)] {
      isFree[Int(at)] = true
      at = cells.load16(at: entry(at) + 2)
    }
    return isFree
  }

  private func chain(_ first: UInt16) -> Chain? {
    let count = cells.load16(at: entry(first) + 6)
    guard count > 0, count <= size else { return nil }
    var descriptors: [RingDescriptor] = []
    var at = first
    for _ in 0..<count {
      guard at < capacity else { return nil }
      descriptors.append(
        RingDescriptor(
          address: DMAAddress(cells.load64(at: entry(at) + 24)), length: cells.load32(at: entry(at) + 20),
          id: cells.load16(at: entry(at) + 16), flags: cells.load16(at: entry(at) + 18)))
      at = cells.load16(at: entry(at) + 2)
    }
    return Chain(first: first, counter: cells.load64(at: entry(first) + 8), descriptors: descriptors)
  }

  private func begin(_ state: QueueState) {
    for index in 0..<capacity {
      for word in stride(from: 0, to: 32, by: 8) { cells.store64(0, at: entry(index) + word) }
      cells.store16(index + 1, at: entry(index) + 2)
    }
    cells.store64(0, at: 0)
    cells.store16(capacity, at: 10)
    free = 0
    freeCount = Int(capacity)
    used = state.used ?? 0
    usedWrap = state.usedWrap
    storeHeader()
    cells.storeRelease16(1, at: 8)
  }

  /// New and old alike: nothing is in progress. The list comes first, so that dying in between looks like a chain given
  /// back.
  private func storeHeader() {
    storeFree(old: free)
    storeUsed(QueueState(available: used, availableWrap: usedWrap))
  }

  /// The list's head, now and before what is in progress, in one store.
  private func storeFree(old: UInt16) { cells.storeRelease32(UInt32(free) | UInt32(old) << 16, at: 12) }

  /// The used position with what is in progress, and without it, in one store.
  private func storeUsed(_ new: QueueState) {
    let wraps: UInt64 = (new.availableWrap ? 1 : 0) | (usedWrap ? 0x100 : 0)
    cells.storeRelease64(UInt64(new.available) | UInt64(used) << 16 | wraps << 32, at: 16)
  }

  // MARK: Recording

  func popped(head: UInt16) -> UInt16 { head }

  func popped(id: UInt16, descriptors: [RingDescriptor]) -> UInt16? {
    guard !descriptors.isEmpty, descriptors.count <= freeCount, free < capacity else { return nil }
    let first = free
    cells.store16(UInt16(descriptors.count), at: entry(first) + 6)
    cells.store64(counter, at: entry(first) + 8)
    counter &+= 1
    cells.store16(1, at: entry(first))
    var last = first
    for descriptor in descriptors {
      guard free < capacity else { return nil }
      last = free
      cells.store64(descriptor.address.rawValue, at: entry(last) + 24)
      cells.store32(descriptor.length, at: entry(last) + 20)
      cells.store16(descriptor.flags, at: entry(last) + 18)
      cells.store16(descriptor.id, at: entry(last) + 16)
      free = cells.load16(at: entry(last) + 2)
    }
    cells.store16(last, at: entry(first) + 4)
    storeFree(old: free)
    freeCount -= descriptors.count
    return first
  }

  func completing(_ record: UInt16) {
    let count = cells.load16(at: entry(record) + 6)
    let last = cells.load16(at: entry(record) + 4)
    // Shared memory: a front-end that changes it harms only itself, but must not make us leave the list.
    guard last < capacity, count > 0, count <= size else { return }
    cells.store16(free, at: entry(last) + 2)
    let old = free
    free = record
    freeCount += Int(count)
    storeFree(old: old)
    var position = QueueState(available: used, availableWrap: usedWrap)
    position.advanceAvailable(by: count, size: size)
    storeUsed(position)
    completed = record
  }

  /// The chain between ``completing(_:)`` and ``published(used:wrap:)``.
  private var completed: UInt16?

  func published(used: UInt16, wrap: Bool) {
    if let completed { cells.storeRelease16(0, at: entry(completed)) }
    completed = nil
    self.used = used
    usedWrap = wrap
    storeHeader()
  }
}

extension QueueState {
  /// Moves a packed ring's available position on by some slots.
  fileprivate mutating func advanceAvailable(by slots: UInt16, size: UInt16) {
    let sum = UInt32(available) + UInt32(slots)
    if sum >= UInt32(size) {
      available = UInt16(truncatingIfNeeded: sum - UInt32(size))
      availableWrap.toggle()
    } else {
      available = UInt16(truncatingIfNeeded: sum)
    }
  }
}
