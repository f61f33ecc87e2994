internal import HostIO
internal import Storage
internal import Virtio

/// A request that the host works on.
struct InFlightRequest: ~Copyable {
  let chain: DescriptorChain
  /// A flush once its ranges are done and are only to be made stable.
  var operation: BlockOperation
  /// Bytes, or ranges, done.
  var done = 0
  /// The segments that hold the data.
  let segments: Range<Int>
  /// Of those, what is under way, or empty where the rest starts. One host request takes a limited number.
  var piece: Range<Int>
  /// Bytes in ``piece``.
  var pieceCount = 0

  init(_ chain: consuming DescriptorChain, _ operation: BlockOperation, segments: Range<Int>) {
    self.chain = chain
    self.operation = operation
    self.segments = segments
    piece = segments.lowerBound..<segments.lowerBound
  }
}

extension InFlightRequest {
  /// Where on the disk the rest of the data is. Bytes.
  var position: UInt64 { operation.position + UInt64(done) }

  /// Device-writable data bytes written.
  var filled: Int { operation.isRead ? done : 0 }

  /// Makes the next piece, as many segments as one host request takes.
  mutating func takePiece(_ file: BlockFile) {
    let (first, limit) = (piece.lowerBound, BlockFile.maxSegments)
    if segments.upperBound - first <= limit {
      piece = first..<segments.upperBound
      pieceCount = operation.count - done
    } else {
      piece = first..<first + limit
      pieceCount = operation.isRead ? file.byteCount(chain.writable, piece) : file.byteCount(chain.readable, piece)
    }
  }

  /// What follows from the host's answer.
  enum Completion {
    case done
    /// Another part follows.
    case more
    /// The rest is to be done without the ring.
    case fallback
    case failed(String, Errno)
    /// The ranges are done; their bytes may have to be made stable.
    case flush

    /// Whether the request has come to its end, and was not cancelled.
    var isEnd: Bool {
      switch self {
      case .done: true
      case .failed(_, let number): number != .canceled
      case .more, .fallback, .flush: false
      }
    }
  }

  /// Accounts for what the host says of the part under way: bytes, or a negative error number.
  mutating func complete(_ result: Int32) -> Completion {
    guard result >= 0 else { return failure(Errno(rawValue: -result)) }
    switch operation.kind {
    case .read, .write:
      done += Int(result)
      if done == operation.count { return .done }
      // Short: at the end of the image, or cut by a limit of the host. The call that does the rest tells which.
      guard Int(result) == pieceCount else { return .fallback }
      piece = piece.upperBound..<piece.upperBound
      return .more
    case .ranges(let action):
      done += 1
      if done < operation.count { return .more }
      return action == .writeZeroes ? .flush : .done
    case .flush: return .done
    }
  }

  private func failure(_ error: Errno) -> Completion {
    // What is done without the ring needs less memory, and waits.
    if error == .wouldBlock || error == .interrupted || error == .noMemory { return .fallback }
    switch operation.kind {
    case .read: return .failed("read", error)
    case .write: return .failed("write", error)
    case .ranges(let action):
      // The other way to do it may work here.
      if error == .notSupported || error == .noFunction { return .fallback }
      return .failed(action == .discard ? "discard" : "write zeroes", error)
    case .flush: return .failed("fdatasync", error)
    }
  }
}

extension IOUring {
  /// Queues a request's next part.
  mutating func queue(_ request: inout InFlightRequest, of work: BlockWork, tag: UInt64) -> Queued {
    let file = work.disk.file
    switch request.operation.kind {
    case .read:
      request.takePiece(file)
      return read(file, into: request.chain.writable, request.piece, at: request.position, tag: tag)
    case .write(let durable):
      request.takePiece(file)
      return write(file, from: request.chain.readable, request.piece, at: request.position, durable: durable, tag: tag)
    case .ranges(let action):
      guard let range = work.range(request.done, of: request.chain), work.refusal(action, range) == nil else {
        return .unsuitable
      }
      let (position, count) = (range.sector << 9, UInt64(range.sectorCount) << 9)
      if action == .secureErase { return .unsuitable }
      return action == .discard || work.mayUnmap(range)
        ? discard(file, at: position, count: count, tag: tag) : writeZeroes(file, at: position, count: count, tag: tag)
    case .flush: return flush(file, tag: tag)
    }
  }
}
