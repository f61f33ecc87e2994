internal import HostIO
public import Logging
import Synchronization

/// Keeps the lines that a device or a log reports.
public final class LogLines: Sendable {
  private let lines = Mutex<[String]>([])
  private let level: Logger.Level
  private let told: @Sendable (String) -> Void

  /// - Parameter told: called with each line, on the thread that reports it.
  public init(_ level: Logger.Level = .info, told: @escaping @Sendable (String) -> Void = { _ in }) {
    self.level = level
    self.told = told
  }

  public var all: [String] { lines.withLock { $0 } }
  public func add(_ line: String) {
    lines.withLock { $0.append(line) }
    told(line)
  }
  public func contains(_ words: String) -> Bool { all.contains { $0.contains(words) } }

  /// A log whose lines come here.
  public var logger: Logger { Logger(label: "test") { _ in Handler(lines: self, logLevel: level) } }

  private struct Handler: LogHandler {
    let lines: LogLines
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level
    init(lines: LogLines, logLevel: Logger.Level) {
      self.lines = lines
      self.logLevel = logLevel
    }
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: Logging.LogEvent) { lines.add("\(event.message)") }
  }
}

extension Logger {
  /// Says nothing.
  public static var silent: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }
}
