import HostIO
import IOMMUInterface
import PCI
import Synchronization

/// Where messages arrive: each wakes the thread that waits for the function whose number is its data.
final class ModelPlatform: MessageInterrupts {
  private let arrived: [EventFD]
  /// No function's message wakes this one: it watches the others.
  static let watcher = World.functions

  init() throws {
    var arrived: [EventFD] = []
    for _ in 0...Self.watcher { arrived.append(try EventFD()) }
    self.arrived = arrived
  }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) { wake(Int(message.data)) }
  func wake(_ number: Int) { if arrived.indices.contains(number) { arrived[number].signal() } }

  /// Waits until `condition` holds. False after 20 seconds: something hangs.
  func wait(_ number: Int, _ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      // A function that may not write memory sends no message, so what it does is looked for now and then.
      if (try? arrived[number].wait(timeout: .milliseconds(2))) == true { _ = try? arrived[number].drain() }
    }
    return true
  }
}
