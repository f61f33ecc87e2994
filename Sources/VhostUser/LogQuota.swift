internal import Logging
internal import Synchronization

/// A log that a peer cannot fill: of each kind of line a few in a while, then how many were left out.
///
/// The place in the source that a line comes from is its kind. Lines of debugging are not limited: who asks for those wants all.
struct LogQuota: LogHandler {
  /// Lines of one kind in ``interval``, at most.
  static let lines = 16
  /// How long a quota lasts.
  static let interval = Duration.seconds(10)

  private struct Place: Hashable {
    var file: String
    var line: UInt
  }

  private struct Kind {
    var begins: ContinuousClock.Instant
    var lines = 0
    var leftOut: UInt64 = 0
  }

  /// As many kinds as the source has places, which is a constant.
  private final class Ledger: Sendable {
    private let kinds = Mutex<[Place: Kind]>([:])

    /// Nil: this line is one too many. Otherwise how many of its kind were left out before it.
    func admit(_ place: Place) -> UInt64? {
      let now = ContinuousClock.now
      return kinds.withLock { kinds in
        var kind = kinds[place] ?? Kind(begins: now)
        defer { kinds[place] = kind }
        var leftOut: UInt64 = 0
        if now - kind.begins >= LogQuota.interval {
          leftOut = kind.leftOut
          kind = Kind(begins: now)
        }
        guard kind.lines < LogQuota.lines else {
          kind.leftOut &+= 1
          return nil
        }
        kind.lines += 1
        return leftOut
      }
    }
  }

  private var inner: any LogHandler
  private let ledger = Ledger()

  init(_ inner: any LogHandler) { self.inner = inner }

  var metadata: Logger.Metadata {
    get { inner.metadata }
    set { inner.metadata = newValue }
  }
  var metadataProvider: Logger.MetadataProvider? {
    get { inner.metadataProvider }
    set { inner.metadataProvider = newValue }
  }
  var logLevel: Logger.Level {
    get { inner.logLevel }
    set { inner.logLevel = newValue }
  }
  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { inner[metadataKey: key] }
    set { inner[metadataKey: key] = newValue }
  }

  func log(event: Logging.LogEvent) {
    guard event.level >= .info else { return inner.log(event: event) }
    guard let leftOut = ledger.admit(Place(file: event.file, line: event.line)) else { return }
    guard leftOut > 0 else { return inner.log(event: event) }
    var event = event
    event.message = "\(event.message) (and \(leftOut) lines like it before, left out)"
    inner.log(event: event)
  }
}

extension Logger {
  /// The same log, within a ``LogQuota``.
  func limited() -> Logger {
    var log = Logger(label: label) { [handler] _ in LogQuota(handler) }
    log.logLevel = logLevel
    return log
  }
}
