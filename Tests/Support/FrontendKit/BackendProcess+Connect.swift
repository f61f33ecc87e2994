import Foundation
import HostIO
public import VhostUserFrontend

extension BackendProcess {
  /// Connects to it. Between making its socket's file and listening a back-end refuses; that is tried again.
  public func connect(
    memory: FrontendMemory = FrontendMemory(), mappings: FrontendMappings = FrontendMappings(),
    timeout: Duration = .seconds(5)
  ) throws(FrontendError) -> Frontend {
    let end = ContinuousClock.now + timeout
    while true {
      do throws(FrontendError) {
        return try Frontend.connect(to: socket, memory: memory, mappings: mappings, timeout: timeout)
      } catch {
        if !isEarly(error) || ContinuousClock.now >= end { throw error }
        usleep(1_000)
      }
    }
  }

  private func isEarly(_ error: FrontendError) -> Bool {
    guard isRunning, case .host(let cause) = error else { return false }
    return cause.errno == .connectionRefused || cause.errno == .noSuchFileOrDirectory
  }
}
