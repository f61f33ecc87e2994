internal import CLinux
internal import Glibc

extension BlockFile {
  /// The lock bytes QEMU uses for an image: a process holds the byte of each permission it uses, and the byte of each
  /// permission it does not share with others, all as shared locks; then it checks whether another process holds an
  /// opposite byte.
  ///
  /// Keeping to it means that Sluice and QEMU, and two Sluices, notice each other: one writer or any number of readers.
  /// A lock of the whole file besides would cover these bytes as well and shut out readers that may stay.
  private enum LockByte {
    static let consistentRead: UInt64 = 0
    static let write: UInt64 = 1
    static let resize: UInt64 = 3
    static let doing: UInt64 = 100
    static let refusing: UInt64 = 200
    /// Without meaning to QEMU.
    static let trial: UInt64 = 300
  }

  /// Takes the lock, as `Options.locked` does, for as long as the file is open or until ``unlock()``. Earlier writes of
  /// others are visible from here on: the page cache is dropped, because another host may have written the file.
  ///
  /// - Throws: EBUSY if another process uses the image in a way that conflicts; what fcntl(2) says where there are no
  ///   locks.
  public func lock() throws(HostError) {
    try Self.lock(descriptor, writing: !isReadOnly, path)
    // Only advice: where it does nothing there is nothing to forget.
    _ = host_file_forget(rawValue)
  }

  /// Finds out whether the image can be locked at all, even if another process holds its lock now.
  ///
  /// - Throws: what fcntl(2) says where there are no locks, as ``lock()``.
  public func checkLocks() throws(HostError) {
    try check(host_lock_conflicts(rawValue, 1, LockByte.trial, 1), "lock", path)
    let taken = host_lock(rawValue, 1, LockByte.trial, 1)
    if taken != -EAGAIN { try check(taken, "lock", path) }
    _ = host_lock(rawValue, 0, LockByte.trial, 1)
  }

  /// Gives the lock back, after everything written is on stable storage.
  ///
  /// - Throws: what fdatasync(2) says; the lock is released all the same.
  public func unlock() throws(HostError) {
    var failure: HostError?
    if !isReadOnly { do throws(HostError) { try flush() } catch { failure = error } }
    Self.release(descriptor)
    if let failure { throw failure }
  }

  /// Locks the image for the life of `file`'s description. Waits up to two seconds for a holder that is ending: after a
  /// kill -9 the kernel keeps a process's files, and so its locks, until the io_uring requests it left behind have
  /// ended, which can be after its parent has noticed its end and started a successor.
  ///
  /// - Throws: EBUSY if another process uses it in a way that conflicts; what fcntl(2) says where there are no locks.
  static func lock(_ file: borrowing FileDescriptor, writing: Bool, _ path: String) throws(HostError) {
    for _ in 0..<100 {
      do throws(HostError) {
        return try tryLock(file, writing: writing, path)
      } catch {
        // Of two that came at once neither may keep the other out while it waits.
        release(file)
        guard error.errno == .resourceBusy else { throw error }
        usleep(20_000)
      }
    }
    do throws(HostError) {
      try tryLock(file, writing: writing, path)
    } catch {
      release(file)
      throw error
    }
  }

  private static func release(_ file: borrowing FileDescriptor) {
    for first in [LockByte.doing, LockByte.refusing] { _ = host_lock(file.rawValue, 0, first, LockByte.resize + 1) }
  }

  private static func tryLock(_ file: borrowing FileDescriptor, writing: Bool, _ path: String) throws(HostError) {
    let uses = writing ? [LockByte.consistentRead, LockByte.write] : [LockByte.consistentRead]
    let refuses = [LockByte.write, LockByte.resize]
    // First announce, then look: of two that come at once at least one sees the other.
    for byte in uses.map({ $0 + LockByte.doing }) + refuses.map({ $0 + LockByte.refusing }) {
      let taken = host_lock(file.rawValue, 1, byte, 1)
      if taken == -EAGAIN { throw HostError("lock", errno: .resourceBusy, subject: path) }
      try check(taken, "lock", path)
    }
    for byte in uses.map({ $0 + LockByte.refusing }) + refuses.map({ $0 + LockByte.doing }) {
      if try check(host_lock_conflicts(file.rawValue, 2, byte, 1), "lock", path) != 0 {
        throw HostError("lock", errno: .resourceBusy, subject: path)
      }
    }
  }
}
