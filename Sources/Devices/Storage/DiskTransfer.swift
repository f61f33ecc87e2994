public import DMA
public import HostIO

/// How far the host is with an operation, which it may do in parts.
@usableFromInline package struct DiskTransfer {
  /// A flush once its ranges are done and are only to be made stable.
  @usableFromInline package var operation: DiskOperation
  /// Bytes, or ranges, done.
  @usableFromInline package var done = 0
  /// The segments that hold the data.
  @usableFromInline package let segments: Range<Int>
  /// Of those, what is under way, or empty where the rest starts. One host request takes a limited number.
  @usableFromInline package var piece: Range<Int>
  /// Bytes in ``piece``.
  @usableFromInline package var pieceCount = 0

  @inlinable package init(_ operation: DiskOperation, segments: Range<Int>) {
    self.operation = operation
    self.segments = segments
    piece = segments.lowerBound..<segments.lowerBound
  }

  /// Where on the disk the rest of the data is. Bytes.
  @inlinable package var position: UInt64 { operation.position + UInt64(done) }

  /// Device-writable data bytes written.
  @inlinable package var filled: Int { operation.isRead ? done : 0 }

  /// Makes the next piece, as many segments as one host request takes.
  @inlinable mutating func takePiece(
    _ file: BlockFile, _ readable: borrowing BufferSegments, _ writable: borrowing BufferSegments
  ) {
    let (first, limit) = (piece.lowerBound, BlockFile.maxSegments)
    if segments.upperBound - first <= limit {
      piece = first..<segments.upperBound
      pieceCount = operation.count - done
    } else {
      piece = first..<first + limit
      pieceCount = operation.isRead ? file.byteCount(writable, piece) : file.byteCount(readable, piece)
    }
  }

  /// What follows from the host's answer.
  @usableFromInline package enum Completion {
    case done
    /// Another part follows.
    case more
    /// The rest is to be done without the ring.
    case fallback
    case failed(String, Errno)
    /// The ranges are done; their bytes may have to be made stable.
    case flush

    /// Whether the operation has come to its end, and was not cancelled.
    package var isEnd: Bool {
      switch self {
      case .done: true
      case .failed(_, let number): number != .canceled
      case .more, .fallback, .flush: false
      }
    }
  }

  /// Accounts for what the host says of the part under way: bytes, or a negative error number.
  @inlinable package mutating func complete(_ result: Int32) -> Completion {
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

  @usableFromInline func failure(_ error: Errno) -> Completion {
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
