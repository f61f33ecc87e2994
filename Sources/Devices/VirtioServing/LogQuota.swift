public import Logging
internal import Synchronization

/// A log that a peer cannot fill: of each kind of line a few in a while, then how many were left out.
///
/// The place in the source that a line comes from is its kind. A kind that used up its lines in a while has a while of
/// twice the length next, up to ten minutes, and the short one again when it has been quiet. Debug lines are not
/// limited.
package struct LogQuota: LogHandler {
  /// Lines of one kind in a while, at most.
  package static let lines = 16
  /// The shortest while, and the longest.
  package static let interval = Duration.seconds(10)
  package static let longest = Duration.seconds(600)

  private struct Place: Hashable {
    var file: String
    var line: UInt
  }

  private struct Kind {
    var begins: ContinuousClock.Instant
    var length = LogQuota.interval
    var lines = 0
    var leftOut: UInt64 = 0
    /// The last line that was left out.
    var last: Logging.LogEvent?

    func isOver(_ now: ContinuousClock.Instant) -> Bool { now - begins >= length }
  }

  /// As many kinds as the source has places, which is a constant.
  package final class Ledger: Sendable {
    private let kinds = Mutex<[Place: Kind]>([:])
    private let now: @Sendable () -> ContinuousClock.Instant

    package init(_ now: @escaping @Sendable () -> ContinuousClock.Instant) { self.now = now }

    /// The lines to log now for `event`: itself, unless it is over the limit, and counts of lines that were left out
    /// long enough.
    package func admit(_ event: Logging.LogEvent) -> [Logging.LogEvent] {
      let now = now()
      let place = Place(file: event.file, line: event.line)
      return kinds.withLock { kinds in
        var all = Self.overdue(&kinds, now) { $0.isOver(now) }
        var kind = kinds[place] ?? Kind(begins: now)
        defer { kinds[place] = kind }
        if kind.isOver(now) { kind = Kind(begins: now) }
        guard kind.lines < LogQuota.lines else {
          kind.leftOut &+= 1
          kind.last = event
          return all
        }
        kind.lines += 1
        all.append(event)
        return all
      }
    }

    /// The counts of all that was left out.
    package func rest() -> [Logging.LogEvent] { kinds.withLock { kinds in Self.overdue(&kinds, now()) { _ in true } } }

    /// A line for each of the kinds from which something was left out; their next while is longer.
    private static func overdue(
      _ kinds: inout [Place: Kind], _ now: ContinuousClock.Instant, _ isDue: (Kind) -> Bool
    ) -> [Logging.LogEvent] {
      var lines: [Logging.LogEvent] = []
      for (place, kind) in kinds where kind.leftOut > 0 && isDue(kind) {
        if var line = kind.last {
          line.message = "\(counted(kind.leftOut, "line")) left out, the last of them: \(line.message)"
          lines.append(line)
        }
        kinds[place] = Kind(begins: now, length: min(kind.length * 2, LogQuota.longest))
      }
      return lines
    }
  }

  private var inner: any LogHandler
  private let ledger: Ledger

  package init(_ inner: any LogHandler, _ ledger: Ledger) {
    self.inner = inner
    self.ledger = ledger
  }

  package var metadata: Logger.Metadata {
    get { inner.metadata }
    set { inner.metadata = newValue }
  }
  package var metadataProvider: Logger.MetadataProvider? {
    get { inner.metadataProvider }
    set { inner.metadataProvider = newValue }
  }
  package var logLevel: Logger.Level {
    get { inner.logLevel }
    set { inner.logLevel = newValue }
  }
  package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { inner[metadataKey: key] }
    set { inner[metadataKey: key] = newValue }
  }

  package func log(event: Logging.LogEvent) {
    guard event.level >= .info else { return inner.log(event: event) }
    for line in ledger.admit(event) { inner.log(event: line) }
  }
}

/// A log that a peer cannot fill.
public struct LimitedLog: Sendable {
  /// Where to log. Of each kind of line 16 in ten seconds are written, and fewer if it goes on; a kind is a place in
  /// the source.
  public let logger: Logger
  private let inner: any LogHandler
  private let ledger: LogQuota.Ledger

  /// Limits what is written to `log`.
  public init(_ log: Logger) { self.init(log, clock: { ContinuousClock.now }) }

  /// With another clock.
  package init(_ log: Logger, clock: @escaping @Sendable () -> ContinuousClock.Instant) {
    let ledger = LogQuota.Ledger(clock)
    self.ledger = ledger
    var limited = Logger(label: log.label) { _ in LogQuota(log.handler, ledger) }
    limited.logLevel = log.logLevel
    logger = limited
    inner = log.handler
  }

  /// Logs how many lines were left out since the last count: for the end of the program. From any thread.
  public func settle() { for line in ledger.rest() { inner.log(event: line) } }
}
