/// Where the memory is that a ring area is a copy of.
struct RemoteArea {
  var memory: any RemoteMemory
  var address: DMAAddress
}

// An area that is a copy of memory that another process has. Where the area is mapped here these do nothing.
extension RingMemory {
  /// Whether it is a copy, to be refreshed before each look and sent after each change.
  public var isRemote: Bool { remote != nil }

  /// What brings `count` bytes from `offset` on as they are now; nil where they are here. An offset outside the area
  /// traps.
  public func remoteRead(at offset: Int, count: Int) -> RemoteAccess? {
    precondition(offset >= 0 && count >= 0 && offset <= byteCount - count)
    guard let remote, count > 0 else { return nil }
    return .read(DMAAddress(remote.address.rawValue + UInt64(offset)), count: count)
  }

  /// Takes what ``remoteRead(at:count:)`` brought.
  public func fill(at offset: Int, _ bytes: [UInt8]) {
    precondition(isRemote && offset >= 0 && offset <= byteCount - bytes.count)
    _ = owner?.copy(bytes.span, to: offset)
  }

  /// Makes `count` bytes from `offset` on what they are now.
  public func refresh(at offset: Int, count: Int) throws(DMAFault) {
    guard let remote, let read = remoteRead(at: offset, count: count) else { return }
    for bytes in try remote.memory.perform([read]) { fill(at: offset, bytes) }
  }

  /// Makes all of it what it is now.
  public func refresh() throws(DMAFault) { try refresh(at: 0, count: byteCount) }

  /// What has to be done for the other side to see `count` bytes from `offset` on as they are here; nil where it sees
  /// them. An offset outside the area traps.
  public func remoteWrite(at offset: Int, count: Int) -> RemoteAccess? {
    precondition(offset >= 0 && count >= 0 && offset <= byteCount - count)
    guard let remote, let owner, count > 0 else { return nil }
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = owner.copy(from: offset, into: &span)
    return .write(DMAAddress(remote.address.rawValue + UInt64(offset)), bytes)
  }
}
