public import IOMMUInterface
import Synchronization

/// Messages of a unit's events, in order.
public final class MessageList: Sendable {
  private let list = Mutex<[InterruptMessage]>([])

  public init() {}
  public var all: [InterruptMessage] { list.withLock { $0 } }
  public func append(_ message: InterruptMessage) { list.withLock { $0.append(message) } }
}
