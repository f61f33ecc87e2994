import HostIO
import Synchronization

extension Matrix {
  /// Runs cells, and returns a result for each, in order.
  ///
  /// - Parameters:
  ///   - threads: machines at a time.
  ///   - progress: called with the number of cells that are done, on any thread, one call at a time.
  public static func run(
    _ cells: [Cell], threads: Int = 2, progress: @escaping @Sendable (Int) -> Void = { _ in }
  ) -> [CellResult] {
    let work = MatrixWork(cells, progress)
    var workers: [WorkerThread] = []
    for i in 1..<max(threads, 1) {
      if let worker = try? WorkerThread(name: "matrix\(i)", { work.run() }) { workers.append(worker) }
    }
    work.run()
    for worker in workers { worker.join() }
    return work.results
  }
}

/// Cells that several threads take from, one at a time.
private final class MatrixWork: Sendable {
  private let cells: [Cell]
  private let progress: @Sendable (Int) -> Void
  private let next = Atomic<Int>(0)
  private let done: Mutex<(count: Int, results: [CellResult?])>

  init(_ cells: [Cell], _ progress: @escaping @Sendable (Int) -> Void) {
    self.cells = cells
    self.progress = progress
    done = Mutex((0, [CellResult?](repeating: nil, count: cells.count)))
  }

  var results: [CellResult] { done.withLock { $0.results.compactMap(\.self) } }

  func run() {
    while true {
      let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
      guard index < cells.count else { return }
      let result = cells[index].run()
      done.withLock { done in
        done.results[index] = result
        done.count += 1
        progress(done.count)
      }
    }
  }
}
