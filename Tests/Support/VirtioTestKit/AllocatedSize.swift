internal import Glibc
public import HostIO

extension BlockFile {
  /// Bytes of storage the file takes, less than `size` if it is sparse. Meaningless for a device.
  public func allocatedSize() throws(HostError) -> UInt64 {
    var facts = stat()
    // Safe: one structure of integers, written before the call returns.
    guard unsafe stat(path, &facts) == 0 else { throw HostError("stat", errno: errno, subject: path) }
    return UInt64(facts.st_blocks) * 512
  }
}
