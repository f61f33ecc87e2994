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
    let work = MatrixWork(cells, groups(cells), progress)
    var workers: [WorkerThread] = []
    for i in 1..<max(threads, 1) {
      if let worker = try? WorkerThread(name: "matrix\(i)", { work.run() }) { workers.append(worker) }
    }
    work.run()
    for worker in workers { worker.join() }
    return work.results
  }

  /// Indices of the cells that share a machine: one after another with the same decision and ring.
  private static func groups(_ cells: [Cell]) -> [[Int]] {
    var groups: [[Int]] = []
    for i in cells.indices {
      if let last = groups.last?.last, cells[last].decision == cells[i].decision,
        cells[last].data?.ring == cells[i].data?.ring,
        cells[last].data?.descriptors == cells[i].data?.descriptors
      {
        groups[groups.count - 1].append(i)
      } else {
        groups.append([i])
      }
    }
    return groups
  }
}

/// Cells that several threads take from, a group at a time.
private final class MatrixWork: Sendable {
  private let cells: [Cell]
  private let groups: [[Int]]
  private let progress: @Sendable (Int) -> Void
  private let next = Atomic<Int>(0)
  private let done = Mutex<(count: Int, results: [Int: CellResult])>((0, [:]))

  init(_ cells: [Cell], _ groups: [[Int]], _ progress: @escaping @Sendable (Int) -> Void) {
    self.cells = cells
    self.groups = groups
    self.progress = progress
  }

  var results: [CellResult] { done.withLock { done in cells.indices.compactMap { done.results[$0] } } }

  func run() {
    while true {
      let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
      guard index < groups.count else { return }
      let group = groups[index]
      let results = CellRun.run(group.map { cells[$0] })
      let order = Dictionary(grouping: group, by: { cells[$0] })
      done.withLock { done in
        for result in results {
          for at in order[result.cell] ?? [] { done.results[at] = result }
        }
        done.count += group.count
        progress(done.count)
      }
    }
  }
}
