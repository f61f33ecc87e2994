internal import CLinux

/// An open descriptor with one owner, closed when the owner lets it go.
public struct FileDescriptor: ~Copyable, Sendable {
  /// The number, for as long as this value lives. Code that passes it on without `release()` must keep this value alive
  /// meanwhile.
  public let rawValue: Int32

  /// Takes over a descriptor that no other code will close.
  public init(adopting rawValue: Int32) {
    self.rawValue = rawValue
  }

  deinit { _ = host_close(rawValue) }

  /// Gives the number away; the caller closes it.
  public consuming func release() -> Int32 {
    let raw = rawValue
    discard self
    return raw
  }

  /// A second descriptor, close-on-exec, of the description that `rawValue`, owned by someone else, names.
  public static func duplicating(_ rawValue: Int32) throws(HostError) -> FileDescriptor {
    FileDescriptor(adopting: try check(host_duplicate(rawValue), "dup"))
  }

  /// Sets O_NONBLOCK of the description, which other holders of it see as well.
  public func setNonblocking(_ on: Bool) throws(HostError) {
    try check(host_set_nonblocking(rawValue, on ? 1 : 0), "fcntl")
  }
}

/// Descriptors in order, each owned until taken; those left are closed together.
///
/// An array cannot hold noncopyable values, hence this list.
public struct FileDescriptorList: ~Copyable, Sendable {
  private var raw: [Int32] = []
  private var next = 0

  public init() {}

  /// How many are left.
  public var count: Int { raw.count - next }
  public var isEmpty: Bool { count == 0 }

  /// The numbers left, first one first; they stay owned by the list.
  public var rawValues: [Int32] { Array(raw[next...]) }

  /// Takes the first one out.
  public mutating func takeFirst() -> FileDescriptor? {
    guard next < raw.count else { return nil }
    next += 1
    return FileDescriptor(adopting: raw[next - 1])
  }

  /// Puts one at the end.
  public mutating func append(_ descriptor: consuming FileDescriptor) {
    raw.append(descriptor.release())
  }

  /// Closes those left.
  public mutating func closeAll() {
    while next < raw.count {
      _ = host_close(raw[next])
      next += 1
    }
    raw.removeAll(keepingCapacity: true)
    next = 0
  }

  deinit {
    for one in raw[next...] { _ = host_close(one) }
  }
}
