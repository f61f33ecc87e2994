/// Numbers that are free: runs, ascending, never adjacent. Page, slot and address allocators use it.
package struct FreeRanges: Sendable {
  /// Inclusive, because the last number may be the last there is.
  package struct Run: Hashable, Sendable {
    package var first: UInt64
    package var last: UInt64
  }
  private(set) var runs: [Run] = []

  /// How many numbers are free. All 2^64 of them count as one less.
  package var count: UInt64 {
    var sum: UInt64 = 0
    for run in runs {
      let (more, overflow) = sum.addingReportingOverflow(run.last - run.first)
      let (all, overflows) = more.addingReportingOverflow(1)
      if overflow || overflows { return .max }
      sum = all
    }
    return sum
  }

  private func index(endingAtOrAfter n: UInt64) -> Int {
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].last < n { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Adds a run, of which nothing may be free yet: false, and nothing changes, if something is.
  package mutating func insert(_ first: UInt64, through last: UInt64) -> Bool {
    guard first <= last else { return false }
    let at = index(endingAtOrAfter: first)
    if at < runs.count, runs[at].first <= last { return false }
    let joinsLower = at > 0 && runs[at - 1].last &+ 1 == first
    let joinsUpper = at < runs.count && last &+ 1 == runs[at].first
    switch (joinsLower, joinsUpper) {
    case (true, true):
      runs[at - 1].last = runs[at].last
      runs.remove(at: at)
    case (true, false): runs[at - 1].last = last
    case (false, true): runs[at].first = first
    case (false, false): runs.insert(Run(first: first, last: last), at: at)
    }
    return true
  }

  /// Takes the free parts out of a run.
  package mutating func remove(_ first: UInt64, through last: UInt64) {
    guard first <= last else { return }
    var at = index(endingAtOrAfter: first)
    while at < runs.count, runs[at].first <= last {
      let run = runs[at]
      if run.first < first, run.last > last {
        runs[at].last = first - 1
        runs.insert(Run(first: last + 1, last: run.last), at: at + 1)
        return
      }
      if run.first < first {
        runs[at].last = first - 1
        at += 1
      } else if run.last > last {
        runs[at].first = last + 1
        return
      } else {
        runs.remove(at: at)
      }
    }
  }

  /// Takes the lowest `count` numbers that lie together and start at a multiple of `alignment`, a power of two.
  package mutating func takeLowest(_ count: UInt64, alignment: UInt64) -> UInt64? {
    let mask = alignment - 1
    for run in runs {
      guard run.first <= UInt64.max - mask else { continue }
      let first = (run.first + mask) & ~mask
      guard first <= run.last, count - 1 <= run.last - first else { continue }
      remove(first, through: first + (count - 1))
      return first
    }
    return nil
  }

  /// Takes the highest `count` numbers up to `limit` that lie together and start at a multiple of `alignment`.
  package mutating func takeHighest(_ count: UInt64, alignment: UInt64, through limit: UInt64) -> UInt64? {
    let mask = alignment - 1
    for run in runs.reversed() {
      let last = min(run.last, limit)
      guard run.first <= last, count - 1 <= last - run.first else { continue }
      let first = (last - (count - 1)) & ~mask
      guard first >= run.first else { continue }
      remove(first, through: first + (count - 1))
      return first
    }
    return nil
  }
}
