internal import CLinux
public import DMA
internal import Glibc

extension BlockFile {
  /// The result of a read that does not wait.
  public enum ImmediateRead: Hashable, Sendable {
    /// Bytes from the start of the segments, possibly fewer than asked for.
    case read(Int)
    /// Some of it is not in memory yet, or the segments are too many or misaligned: read in another way.
    case wouldWait
    /// This file never supports it: do not try again.
    case unsupported
  }

  /// Reads into the segments `range` what is in the page cache. Never waits for a disk.
  public func readImmediately(
    into segments: borrowing BufferSegments, _ range: Range<Int>, at position: UInt64
  ) -> ImmediateRead {
    guard range.count <= Self.maxSegments else { return .wouldWait }
    guard !isDirect else { return .unsupported }
    let result = unsafe segments.withIOVectors(range) { vectors, count in
      // Safe: as in read(into:_:skipping:at:).
      unsafe host_file_read_now(rawValue, vectors, count, position)
    }
    if result >= 0 { return .read(result) }
    return result == -Int(EOPNOTSUPP) ? .unsupported : .wouldWait
  }
}
