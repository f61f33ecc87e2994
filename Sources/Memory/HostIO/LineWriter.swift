internal import CLinux
internal import Glibc
internal import Synchronization

/// Lines to a descriptor that never make their writers wait: a bounded queue in memory, emptied by a thread of its own.
///
/// The reader of the descriptor may be slow, stuck or gone, or the disk behind it full: then lines are lost, a later
/// line gives their count, and nothing else happens. Any thread may use it. SIGPIPE has to be ignored
/// (``SignalFD/ignoreBrokenPipes()``).
public final class LineWriter: Sendable {
  /// Most bytes that wait; a line that would be one too many is lost.
  public static let capacity = 256 << 10

  private struct State {
    var waiting: [[UInt8]] = []
    var byteCount = 0
    var lost: UInt64 = 0
    /// Lines taken and not yet written.
    var isBusy = false
    var hasThread = false
  }
  private let state = Mutex(State())
  private let descriptor: Int32
  private let name: String
  /// The line that counts lost ones.
  private let lossLine: @Sendable (UInt64) -> String
  private let arrived: EventFD
  private let emptied: EventFD

  /// Lines go to `descriptor`, which stays its owner's. The thread, called `name`, starts with the first line, so that
  /// signals can be blocked before.
  ///
  /// - Parameter lossLine: says how many lines were lost.
  public init(
    _ descriptor: Int32, name: String = "log", lossLine: @escaping @Sendable (UInt64) -> String
  ) throws(HostError) {
    self.descriptor = descriptor
    self.name = name
    self.lossLine = lossLine
    arrived = try EventFD()
    emptied = try EventFD()
  }

  /// Queues a line; its end is added. Never waits.
  public func write(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    let (isNews, needsThread) = state.withLock { state in
      guard state.byteCount + bytes.count <= Self.capacity else {
        state.lost &+= 1
        return (false, false)
      }
      state.waiting.append(bytes)
      state.byteCount += bytes.count
      defer { state.hasThread = true }
      return (state.waiting.count == 1, !state.hasThread)
    }
    if needsThread {
      // Without a thread, for want of resources, there is no log: the program has other worries.
      _ = try? WorkerThread(name: name) { [self] in run() }
    }
    if isNews { arrived.signal() }
  }

  /// Waits until all lines are written, or the time is over.
  public func flush(within time: Duration) {
    let end = ContinuousClock.now + time
    while state.withLock({ !$0.waiting.isEmpty || $0.isBusy }) {
      let left = end - ContinuousClock.now
      guard left > .zero, (try? emptied.wait(timeout: left)) == true else { return }
      _ = try? emptied.drain()
    }
  }

  private func run() {
    while (try? arrived.wait()) == true {
      _ = try? arrived.drain()
      var batch = take()
      while !batch.isEmpty {
        if let failed = batch.firstIndex(where: { !put($0) }) {
          // They cannot be written. They are counted with the next line that comes; retrying now would loop.
          state.withLock {
            $0.lost &+= UInt64(batch.count - failed)
            $0.isBusy = false
          }
          break
        }
        batch = take()
      }
      emptied.signal()
    }
  }

  /// What waits, and a count of what was lost after it.
  private func take() -> [[UInt8]] {
    state.withLock { state in
      var batch = state.waiting
      if state.lost > 0 { batch.append(Array((lossLine(state.lost) + "\n").utf8)) }
      state.waiting = []
      state.byteCount = 0
      state.lost = 0
      state.isBusy = !batch.isEmpty
      return batch
    }
  }

  /// Writes a line, waiting as long as it takes. False: there is no reader, or no room on the disk.
  private func put(_ line: [UInt8]) -> Bool {
    var done = 0
    while done < line.count {
      // Safe: the range is inside the array, which lives across the call.
      let n = unsafe line.withUnsafeBufferPointer {
        unsafe Glibc.write(descriptor, $0.baseAddress! + done, $0.count - done)
      }
      if n >= 0 {
        done += n
        continue
      }
      switch errno {
      case EINTR: continue
      // The descriptor was made non-blocking elsewhere. A terminal and a pipe can be polled; anything else is tried
      // again soon.
      case EAGAIN:
        if host_poll(descriptor, UInt32(HOST_WRITABLE), -1, 100_000_000) <= 0 {
          _ = host_poll(-1, 0, -1, 20_000_000)
        }
      default: return false
      }
    }
    return true
  }
}
