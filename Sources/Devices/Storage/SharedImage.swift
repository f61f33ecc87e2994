package import HostIO
internal import Synchronization

/// An image that is locked only while queues use it (`DiskLock.running`).
///
/// Any thread may use it.
package final class SharedImage: Sendable {
  private let file: BlockFile
  private let faults: FaultReporter
  /// Held while the lock is taken or given back: the second caller finds it taken.
  private let users = Mutex(0)

  init(_ file: BlockFile, _ faults: FaultReporter) {
    self.file = file
    self.faults = faults
  }

  fileprivate func begin() throws(HostError) {
    try users.withLock { users throws(HostError) in
      if users == 0 { try file.lock() }
      users += 1
    }
  }

  fileprivate func end() {
    users.withLock { users in
      users -= 1
      guard users == 0 else { return }
      do throws(HostError) { try file.unlock() } catch { faults.report("\(error)") }
    }
  }
}

/// One queue's use of an image, as long as the object lives: the last one releases the lock.
package final class ImageUse {
  private let image: SharedImage

  /// - Throws: EBUSY (`lock`) if another process uses it, see `BlockFile`.
  package init(_ image: SharedImage) throws(HostError) {
    // First: once everything is set, throwing would run deinit.
    try image.begin()
    self.image = image
  }

  deinit { image.end() }
}
