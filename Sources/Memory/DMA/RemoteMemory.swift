import Synchronization

/// One access to memory that another process reads and writes for us.
public enum RemoteAccess: Hashable, Sendable {
  /// Brings `count` bytes from an address on.
  case read(DMAAddress, count: Int)
  /// Takes bytes to an address.
  case write(DMAAddress, [UInt8])
}

/// Guest memory that this process cannot map: the process that has it does each access for us, and checks it.
///
/// A space over such memory resolves addresses to copies. What a device reads is fetched before the device sees it, and
/// what it wrote is sent before the driver hears of it. Rings are copies too, refreshed before each look; see
/// ``RingMemory/refresh(at:count:)``.
public protocol RemoteMemory: AnyObject, Sendable {
  /// Does accesses in their order, all under way together, and returns when they have ended: for each read its bytes,
  /// all of them, for each write nothing. Called on queue threads, and bounded in time.
  ///
  /// - Throws: the first refusal. Accesses after it may have been done or not.
  func perform(_ accesses: [RemoteAccess]) throws(DMAFault) -> [[UInt8]]
  /// What all copies together may take.
  var copyBudget: CopyBudget { get }
}

/// How many bytes of copies there may be at one time, whatever drivers name: a queue that has none may always have those
/// of one chain. Any thread may use it.
public final class CopyBudget: Sendable {
  private let left: Atomic<Int>

  /// - Parameter byteCount: the most.
  public init(_ byteCount: Int) { left = Atomic(byteCount) }

  /// Takes `count` bytes of it; false if there is not so much left. `isFirst`: takes them all the same.
  func take(_ count: Int, isFirst: Bool) -> Bool {
    guard left.subtract(count, ordering: .relaxed).newValue < 0, !isFirst else { return true }
    give(count)
    return false
  }

  func give(_ count: Int) { left.add(count, ordering: .relaxed) }
}

/// The copies behind one chain's segments. One thread uses it.
@safe final class RemoteCopies {
  @safe private struct Copy {
    var address: DMAAddress
    // Safe: `count` initialised bytes of our own, freed with this object.
    var bytes: UnsafeMutableRawPointer
    var count: Int
    var access: DMAAccess
  }
  /// The most bytes of one chain.
  static let limit = 16 << 20
  private let memory: any RemoteMemory
  private var copies: [Copy] = []
  /// Copies before this one have been fetched, as far as they are read.
  private var fetched = 0
  private(set) var byteCount = 0

  init(_ memory: any RemoteMemory) { self.memory = memory }

  deinit { removeAll() }

  /// What they count for as pieces of a chain: pages.
  var pages: Int { (byteCount + 4095) >> 12 }

  /// A copy of zeroes of `count` bytes at an address, not fetched yet; nil where copies take too much already.
  /// `isFirst`: those of other queues do not count.
  func add(_ address: DMAAddress, _ count: Int, _ access: DMAAccess, isFirst: Bool) -> UInt64? {
    guard count <= Self.limit - byteCount, memory.copyBudget.take(count, isFirst: isFirst) else { return nil }
    let bytes = unsafe LargeStorage.allocate(byteCount: count)
    // Safe: it was made with `count` bytes just now.
    unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    copies.append(unsafe Copy(address: address, bytes: bytes, count: count, access: access))
    byteCount += count
    return UInt64(UInt(bitPattern: bytes))
  }

  /// Brings what the device reads, as far as it has not come yet.
  func fetch() throws(DMAFault) {
    let new = copies[fetched...].filter { $0.access == .read }
    fetched = copies.count
    guard !new.isEmpty else { return }
    let arrived = try memory.perform(new.map { .read($0.address, count: $0.count) })
    for (copy, bytes) in zip(new, arrived) {
      precondition(bytes.count == copy.count, "a read yields all of its bytes")
      // Safe: both have `count` bytes, and they are different allocations.
      unsafe bytes.withUnsafeBytes { unsafe copy.bytes.copyMemory(from: $0.baseAddress!, byteCount: copy.count) }
    }
  }

  /// What has to be sent of what the device wrote: the first `written` bytes of all that it may write, and with
  /// `andLast` the last byte.
  func writes(first written: Int, andLast: Bool) -> [RemoteAccess] {
    var left = written
    var result: [RemoteAccess] = []
    for (i, copy) in copies.enumerated() where copy.access == .write {
      let n = min(left, copy.count)
      left -= n
      if n > 0 { result.append(.write(copy.address, part(copy, 0..<n))) }
      if andLast, n < copy.count, !copies[(i + 1)...].contains(where: { $0.access == .write }) {
        let last = copy.count - 1
        result.append(.write(DMAAddress(copy.address.rawValue + UInt64(last)), part(copy, last..<copy.count)))
      }
    }
    return result
  }

  private func part(_ copy: Copy, _ range: Range<Int>) -> [UInt8] {
    // Safe: callers' ranges are inside the copy, whose bytes are initialised.
    unsafe [UInt8](UnsafeRawBufferPointer(start: copy.bytes + range.lowerBound, count: range.count))
  }

  func removeAll() {
    // Safe: made by add with the same count, and used no more.
    for copy in copies { unsafe LargeStorage.free(copy.bytes, byteCount: copy.count) }
    memory.copyBudget.give(byteCount)
    copies = []
    (fetched, byteCount) = (0, 0)
  }
}
