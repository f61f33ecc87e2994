package import DMA
internal import HostIO

/// How an operation ended that was done on the spot.
package enum DiskOutcome {
  case done
  /// The host failed, or the image ended early, after so many bytes: reported.
  case failed(done: Int)
  /// A range was not there, or not allowed, any more.
  case refused
}

extension BlockDisk {
  /// The engine for the image, found out at the start rather than by the first guest.
  package func chooseEngine() throws(DiskError) -> DiskEngine {
    let wanted = options.engine
    // Memory has nothing to wait for.
    if wanted == .synchronous || wanted == .automatic && file.isMemory { return .synchronous }
    do throws(HostError) {
      _ = try IOUring(entries: 8)
      return .uring
    } catch {
      if wanted == .uring { throw .engine(error) }
      // What is short now may be there when a guest comes.
      if error.isShortage { return .uring }
      options.report("requests are done one after the other: io_uring cannot be used (\(error))")
      return .synchronous
    }
  }

  /// Does what is left of a transfer, the caller waiting as long as it takes.
  ///
  /// - Parameters:
  ///   - isDurable: whether zeroes have to be stable when this returns.
  ///   - range: the range with the index that it is given, checked; nil: it cannot be had.
  package func finish(
    _ transfer: DiskTransfer, _ readable: borrowing BufferSegments, _ writable: borrowing BufferSegments,
    isDurable: Bool, range: (Int) -> DiskRange?
  ) -> DiskOutcome {
    let operation = transfer.operation
    var done = transfer.filled
    do throws(HostError) {
      switch operation.kind {
      case .read:
        done += try file.read(into: writable, transfer.segments, skipping: done, at: transfer.position)
        if done < operation.count {
          endedEarly(operation.position + UInt64(done))
          return .failed(done: done)
        }
      case .write(let durable):
        try file.write(
          from: readable, transfer.segments, skipping: transfer.done, at: transfer.position, durable: durable)
      case .flush:
        if !file.isReadOnly { try file.flush() }
      case .ranges(let action):
        for i in transfer.done..<operation.count {
          guard let range = range(i) else { return .refused }
          try perform(action, range)
        }
        if action == .writeZeroes && isDurable { try file.flush() }
      }
    } catch {
      faults.report("\(error)")
      return .failed(done: done)
    }
    return .done
  }

  private func perform(_ action: DiskRangeAction, _ range: DiskRange) throws(HostError) {
    switch action {
    case .discard: try file.discard(at: range.position, count: range.count)
    case .writeZeroes: try file.writeZeroes(at: range.position, count: range.count, unmap: range.mayUnmap)
    case .secureErase: try file.secureErase(at: range.position, count: range.count)
    }
  }
}
