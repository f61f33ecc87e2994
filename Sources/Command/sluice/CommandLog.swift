import HostIO
import Logging
import VhostUserBackend
import VirtioServing

/// The log of a command that runs for long: lines on standard error, which no thread ever waits for.
///
/// Any thread may log. Under systemd each line begins with its priority as sd-daemon(3) has it, `<4>`: the journal's
/// own stream takes that from every service, where its native socket may be out of reach for a confined one.
final class CommandLog: Sendable {
  private let writer: LineWriter
  private let format: LogFormat
  private let device: String
  private let isJournal = StandardStream.error.isJournal

  /// The log about `device`.
  init(_ device: String, format: LogFormat) throws(HostError) {
    self.device = device
    self.format = format
    let isJournal = isJournal
    writer = try LineWriter(StandardStream.error.rawValue) { lost in
      let sentence =
        "\(counted(lost, "line of the log was", "lines of the log were")) lost: the reader did not take them in time"
      return Self.line(.warning, sentence, [:], device, format, isJournal)
    }
  }

  /// A logger that writes here.
  func logger(_ level: LogLevel) -> Logger {
    var logger = Logger(label: device) { _ in CommandLogHandler(log: self) }
    logger.logLevel = level.level
    return logger
  }

  fileprivate func write(_ level: Logger.Level, _ message: String, _ details: Logger.Metadata) {
    writer.write(Self.line(level, message, details, device, format, isJournal))
  }

  /// Writes what the back-end is doing: the answer of `sluice explain`, as asked for by a signal.
  func report(_ statistics: ServingReport) {
    switch format {
    case .text: for line in statistics.words.split(separator: "\n") { write(.notice, "\(line)", [:]) }
    case .json:
      var object = Self.object(.notice, "state", device)
      object.add("state", json: statistics.json.trimmingEnd)
      writer.write((isJournal ? "<\(Self.priority(.notice))>" : "") + object.text)
    }
  }

  /// Writes what waits, for as long as a program may take that is about to end.
  func flush() { writer.flush(within: .milliseconds(300)) }

  /// One line, even if the message has several.
  private static func line(
    _ level: Logger.Level, _ message: String, _ details: Logger.Metadata, _ device: String, _ format: LogFormat,
    _ isJournal: Bool
  ) -> String {
    let prefix = isJournal ? "<\(priority(level))>" : ""
    let details = details.sorted { $0.key < $1.key }
    switch format {
    case .text:
      let more = details.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
      let severity = level >= .warning ? "\(level): " : ""
      let line = "sluice \(device): \(severity)\(message)\(more.isEmpty ? "" : " (\(more))")"
      return prefix + String(String.UnicodeScalarView(line.unicodeScalars.map { $0.value < 0x20 ? " " : $0 }))
    case .json:
      var object = object(level, message, device)
      for (key, value) in details { object.add(key, "\(value)") }
      return prefix + object.text
    }
  }

  private static func object(_ level: Logger.Level, _ message: String, _ device: String) -> JSONObject {
    var object = JSONObject()
    object.add("time", WallClock.text(WallClock.now()))
    object.add("level", level.rawValue)
    object.add("device", device)
    object.add("message", message)
    return object
  }

  /// As syslog(3) numbers them.
  private static func priority(_ level: Logger.Level) -> Int {
    switch level {
    case .trace, .debug: 7
    case .info: 6
    case .notice: 5
    case .warning: 4
    case .error: 3
    case .critical: 2
    }
  }
}

/// What swift-log calls.
private struct CommandLogHandler: LogHandler {
  let log: CommandLog
  var metadata: Logger.Metadata = [:]
  var logLevel: Logger.Level = .info

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    log.write(event.level, "\(event.message)", metadata.merging(event.metadata ?? [:]) { _, new in new })
  }
}

extension String {
  /// Without the end of its line.
  fileprivate var trimmingEnd: String { hasSuffix("\n") ? String(dropLast()) : self }
}
