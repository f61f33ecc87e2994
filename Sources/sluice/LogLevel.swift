import ArgumentParser
import HostIO
import Logging

/// How much is told on standard error.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
  case debug, info, warning, error

  /// A logger of one-line messages: `sluice blk: a second front-end …`.
  func logger(_ label: String) -> Logger {
    var logger = Logger(label: label) { PlainLogHandler(label: $0) }
    logger.logLevel =
      switch self {
      case .debug: .debug
      case .info: .info
      case .warning: .warning
      case .error: .error
      }
    return logger
  }
}

/// Writes a line a message, without a date: whoever collects standard error adds one.
struct PlainLogHandler: LogHandler {
  let label: String
  var metadata: Logger.Metadata = [:]
  var logLevel: Logger.Level = .info

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let all = metadata.merging(event.metadata ?? [:]) { _, new in new }
    let details = all.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
    let prefix = event.level >= .warning ? "\(event.level): " : ""
    StandardStream.error.print("sluice \(label): \(prefix)\(event.message)\(details.isEmpty ? "" : " (\(details))")")
  }
}
