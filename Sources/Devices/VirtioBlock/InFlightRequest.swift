internal import Glibc
internal import HostIO
internal import Virtio

/// A request that the host works on.
struct InFlightRequest: ~Copyable {
  enum Kind {
    case read
    case write(durable: Bool)
    case flush
    case ranges(BlockRangeAction)
  }

  var chain: DescriptorChain
  let kind: Kind
  /// Where on the disk the data are. Bytes.
  let position: UInt64
  /// Bytes of data; ranges if it is a request of those.
  let count: Int
  /// Bytes, or ranges, done.
  var done = 0
  /// The data's segments not handed to the host yet, or under way. One host request takes a limited number.
  var segments: Range<Int>
  /// Of those, what is under way.
  var piece: Range<Int>
  /// Bytes in ``piece``.
  var pieceCount = 0
  /// Ranges are done, and are being made stable.
  var isFlushing = false

  init(
    _ chain: consuming DescriptorChain, _ kind: Kind, at position: UInt64 = 0, count: Int = 0,
    segments: Range<Int> = 0..<0
  ) {
    self.chain = chain
    self.kind = kind
    self.position = position
    self.count = count
    self.segments = segments
    piece = segments.lowerBound..<segments.lowerBound
  }
}

extension InFlightRequest {
  /// Device-writable data bytes written.
  var filled: Int {
    if case .read = kind { return done }
    return 0
  }

  /// Makes the next piece, as many segments as one host request takes.
  mutating func takePiece(_ file: BlockFile) {
    let limit = BlockFile.maxSegments
    if segments.count <= limit {
      piece = segments
      pieceCount = count - done
    } else {
      piece = segments.lowerBound..<segments.lowerBound + limit
      pieceCount = isRead ? file.byteCount(chain.writable, piece) : file.byteCount(chain.readable, piece)
    }
  }

  enum Landing {
    case done
    /// Another part follows.
    case more
    /// The rest has to be done synchronously.
    case elsewhere
    case failed(String, Int32)
    /// The ranges are done; their bytes may have to be made stable.
    case flush

    /// Whether the request has come to its end, and was not cancelled.
    var isEnd: Bool {
      switch self {
      case .done: true
      case .failed(_, let number): number != ECANCELED
      case .more, .elsewhere, .flush: false
      }
    }
  }

  /// Accounts for what the host says of the part under way: bytes, or a negative error number.
  mutating func landed(_ result: Int32) -> Landing {
    // Out of memory or interrupted: what is done without the ring needs less, and waits.
    if result == -EAGAIN || result == -EINTR || result == -ENOMEM { return .elsewhere }
    switch kind {
    case .read, .write:
      guard result >= 0 else { return .failed(isRead ? "read" : "write", -result) }
      done += Int(result)
      if done == count { return .done }
      // Short: at the end of the image, or cut by a limit of the host. The call that does the rest shows which.
      guard Int(result) == pieceCount else { return .elsewhere }
      segments = piece.upperBound..<segments.upperBound
      return .more
    case .flush:
      return result >= 0 ? .done : .failed("fdatasync", -result)
    case .ranges(let action):
      if isFlushing { return result >= 0 ? .done : .failed("fdatasync", -result) }
      // The other way to do it may work here.
      if result == -EOPNOTSUPP || result == -ENOSYS { return .elsewhere }
      guard result >= 0 else { return .failed(action == .discard ? "discard" : "write zeroes", -result) }
      done += 1
      if done < count { return .more }
      return action == .writeZeroes ? .flush : .done
    }
  }

  private var isRead: Bool {
    if case .read = kind { return true }
    return false
  }
}
