import ArgumentParser
import Logging

/// How much is told on standard error.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
  case debug, info, warning, error

  var level: Logger.Level {
    switch self {
    case .debug: .debug
    case .info: .info
    case .warning: .warning
    case .error: .error
    }
  }
}

/// How a line of the log is written.
enum LogFormat: String, CaseIterable, ExpressibleByArgument { case text, json }
