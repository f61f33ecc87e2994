internal import HostIO
internal import Synchronization

/// Checks a disk's size periodically.
///
/// There is no event for a resize alone: inotify reports it like any write, which would cost every write of a driver a
/// little.
package final class SizeWatcher: Sendable {
  private let disk: BlockDisk
  private let interval: Duration
  /// Ends the thread that looks, if there is one.
  private let running = Mutex<EventFD?>(nil)

  package init(_ disk: BlockDisk, every interval: Duration) {
    self.disk = disk
    self.interval = interval
  }

  /// Starts looking; once is enough. Without a thread for it sizes stay as they are, which is reported.
  package func start() {
    running.withLock { running in
      guard running == nil else { return }
      do throws(HostError) {
        let stop = try EventFD()
        let disk = disk
        let interval = interval
        _ = try WorkerThread(name: "disk-size") {
          // A failure to wait ends the watching, not the device.
          while (try? stop.wait(timeout: interval)) == false { disk.refreshSize() }
        }
        running = stop
      } catch {
        disk.faults.report("nothing will notice when the image is resized: \(error)")
      }
    }
  }

  deinit {
    // Not waited for: the last owner may be an observer, on that very thread.
    _ = running.withLock { $0?.signal() }
  }
}
