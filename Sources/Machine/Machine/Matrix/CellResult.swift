/// What became of a cell.
public struct CellResult: Sendable {
  /// How it ended.
  public enum Verdict: Hashable, Sendable {
    case passed
    /// There is no such case, and why.
    case skipped(String)
    /// The observation that differs from the expectation.
    case failed(String)
  }
  public var cell: Cell
  public var verdict: Verdict
  /// What happened, a line each: `--explain` prints it.
  public var story: [String]
}
