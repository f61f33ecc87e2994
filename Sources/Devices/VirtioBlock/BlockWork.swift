internal import DMA
internal import HostIO
internal import Storage
internal import Virtio

/// How a request ended.
struct BlockOutcome {
  var status: BlockStatus
  /// Device-writable bytes written, from the first one on, without the status.
  var filled = 0

  static var ok: Self { Self(status: .ok) }
  static var ioError: Self { Self(status: .ioError) }
}

/// A disk as one queue works on it; what is done here is done on the spot, the caller waiting. One thread uses it.
struct BlockWork {
  let disk: BlockDisk
  let terms: BlockTerms
  private let cache: BlockCacheUse
  private let use: ImageUse?

  /// - Parameter use: what is held as long as there is work.
  init(disk: BlockDisk, terms: BlockTerms, use: ImageUse?) {
    self.disk = disk
    self.terms = terms
    self.use = use
    cache = BlockCacheUse(disk.cache)
  }

  /// Whether a write that starts now has to be stable when it completes.
  @inline(__always) var isDurable: Bool { terms.durable ?? !disk.cache.isWriteback }

  /// To be called before requests of the queue are taken.
  @inline(__always)
  func begin(on queue: borrowing Virtqueue) {
    cache.look(isAtStart: queue.state.available == 0 && queue.state.availableWrap)
  }

  /// Does what is left of a transfer, the caller waiting as long as it takes, and ends it.
  @inline(__always)
  func finish(_ transfer: DiskTransfer, _ chain: consuming DescriptorChain, in queue: inout Virtqueue) {
    // Memory has nothing to wait for. Elsewhere mappings are let go meanwhile, but for the chain's own.
    let mayWait = !disk.file.isMemory
    if mayWait { queue.letGo() }
    let outcome = perform(transfer, chain)
    if mayWait {
      queue.takeHold()
      queue.lookAtClock()
    }
    complete(chain, outcome, in: &queue)
  }

  private func perform(_ transfer: DiskTransfer, _ chain: borrowing DescriptorChain) -> BlockOutcome {
    let operation = transfer.operation
    // The status of the range that was refused, if one was.
    var refused: BlockStatus?
    let outcome = disk.finish(transfer, chain.readable, chain.writable, isDurable: isDurable) { i in
      guard let action = operation.rangeAction else { return nil }
      refused = refusal(action, range(i, of: chain))
      return refused == nil ? checkedRange(i, of: chain, action) : nil
    }
    switch outcome {
    case .done: return BlockOutcome(status: .ok, filled: operation.isRead ? operation.count : 0)
    case .failed(let done): return BlockOutcome(status: .ioError, filled: done)
    case .refused: return BlockOutcome(status: refused ?? .ioError)
    }
  }

  /// The ID string, as much of it as there is room for.
  func getID(_ chain: borrowing DescriptorChain) -> BlockOutcome {
    var id = InlineArray<20, UInt8>(repeating: 0)
    var i = 0
    for byte in disk.options.serial.utf8.prefix(id.count) {
      id[i] = byte
      i += 1
    }
    let room = min(id.count, chain.writable.byteCount - 1)
    return BlockOutcome(status: .ok, filled: chain.writable.copy(id.span.extracting(..<room), to: 0))
  }

  /// Writes the status where it belongs and gives the chain back.
  @inline(__always)
  func complete(_ chain: consuming DescriptorChain, _ outcome: BlockOutcome, in queue: inout Virtqueue) {
    let last = chain.writable.byteCount - 1
    let wrote = chain.writable.write(outcome.status.rawValue, at: last)
    // The used length counts from the first byte on: the status is in it only if all before it was written (§2.7.8.2).
    queue.complete(chain, written: outcome.filled == last && wrote ? last + 1 : outcome.filled)
  }

  /// Gives back a chain that cannot be acted on: some of its memory cannot be reached, or it has no room for a status.
  ///
  /// - Throws: `QueueError.device` where the status cannot be written. If the chain were returned, its old memory would
  ///   be read as the status, most likely as success.
  func refuse(_ chain: consuming DescriptorChain, in queue: inout Virtqueue) throws(QueueError) {
    if chain.writeStatus(BlockStatus.ioError.rawValue) {
      queue.complete(chain, written: 0)
      return
    }
    let fault = chain.fault
    queue.retire(at: chain)
    throw .device(
      fault.map { "a request cannot be done, and has no status byte that could say so: \($0)" }
        ?? "a request has no room for its status")
  }
}
