public import DMA
import Synchronization

/// Another space's memory as if another process had it: nothing is mapped for the device, and each access is made in
/// the inner space when the device asks for it.
public final class RemoteSpace: DMASpace, RemoteMemory {
  private struct State {
    var accesses = 0
    /// Accesses until one is refused; nil: none is.
    var left: Int?
    var faults: [DMAFault] = []
  }
  private let inner: any DMASpace
  public let copyBudget: CopyBudget
  private let state = Mutex(State())

  /// - Parameter budget: bytes of copies.
  public init(_ inner: any DMASpace, budget: Int = 256 << 20) {
    self.inner = inner
    copyBudget = CopyBudget(budget)
  }

  public var fence: TranslationFence { inner.fence }
  public var dirtyLog: DirtyLog? { nil }
  public var remote: (any RemoteMemory)? { self }
  public var faults: [DMAFault] { state.withLock { $0.faults } }
  /// Accesses so far.
  public var accesses: Int { state.withLock { $0.accesses } }
  /// Refuses the access after `n` others, and no other; nil: none.
  public func refuse(after n: Int?) { state.withLock { $0.left = n } }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let run = try inner.translate(address, for: access, waking: waiter)
    let last = DMAAddress(run.firstAddress.rawValue + (run.byteCount - 1))
    return HostRun(remoteFrom: run.firstAddress, through: last, permissions: run.permissions)
  }

  public func report(_ fault: DMAFault) { state.withLock { $0.faults.append(fault) } }

  public func perform(_ accesses: [RemoteAccess]) throws(DMAFault) -> [[UInt8]] {
    var results: [[UInt8]] = []
    var refusal: DMAFault?
    for access in accesses {
      let isRefused = state.withLock { state in
        state.accesses += 1
        guard let left = state.left else { return false }
        state.left = left - 1
        return left == 0
      }
      do throws(DMAFault) {
        results.append(try perform(access, isRefused: isRefused))
      } catch {
        // The others are done all the same, as by a process to which they are on their way already.
        if refusal == nil { refusal = error }
        results.append([])
      }
    }
    if let refusal { throw refusal }
    return results
  }

  private func perform(_ access: RemoteAccess, isRefused: Bool) throws(DMAFault) -> [UInt8] {
    switch access {
    case .read(let address, let count):
      if isRefused { throw DMAFault(address: address, access: .read, reason: .unmapped) }
      var bytes = [UInt8](repeating: 0, count: count)
      try reach(address, count, .read) { segments in
        var span = bytes.mutableSpan
        _ = segments.readable.copy(from: 0, into: &span)
      }
      return bytes
    case .write(let address, let bytes):
      if isRefused { throw DMAFault(address: address, access: .write, reason: .unmapped) }
      try reach(address, bytes.count, .write) { _ = $0.writable.copy(bytes.span, to: 0) }
      return []
    }
  }

  private func reach(
    _ address: DMAAddress, _ count: Int, _ access: DMAAccess, _ body: (borrowing SegmentList) -> Void
  ) throws(DMAFault) {
    var iotlb = IOTLB(inner)
    var pool = SegmentPool()
    _ = iotlb.beginRound()
    defer { iotlb.endRound() }
    var list = pool.take()
    list.clear()
    if access == .write { list.beginWritable() }
    do throws(DMAInterruption) { try iotlb.resolve(address, count: count, for: access, into: &list) } catch {
      if case .fault(let fault) = error { throw fault }
      throw DMAFault(address: address, access: access, reason: .exhausted)
    }
    body(list)
    pool.give(back: list)
  }
}
