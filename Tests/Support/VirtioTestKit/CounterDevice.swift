import Synchronization
public import Virtio

/// Several echo queues, and a configuration of 12 bytes that changes by itself: its first 8 bytes are one number, the
/// next 4 are the driver's.
public final class CounterDevice: VirtioDevice {
  private struct State {
    var number: UInt64 = 0x1111_2222_3333_4444
    var drivers: UInt32 = 0
    var observer: (@Sendable () -> Void)?
  }
  private let state = Mutex(State())
  public let queues: Int
  public init(queues: Int = 3) { self.queues = queues }

  public var id: DeviceID { .entropy }
  public var features: Features { .ring }
  public var maxQueueSizes: [UInt16] { Array(repeating: 48, count: queues) }
  public var configurationSize: Int { 12 }

  public func set(_ number: UInt64) {
    let observer = state.withLock { state in
      state.number = number
      return state.observer
    }
    observer?()
  }
  public var drivers: UInt32 { state.withLock { $0.drivers } }

  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    let (number, drivers) = state.withLock { ($0.number, $0.drivers) }
    let all =
      (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
      + (0..<4).map { UInt8(truncatingIfNeeded: drivers >> (8 * $0)) }
    for i in bytes.indices { bytes[i] = all.indices.contains(offset + i) ? all[offset + i] : 0 }
  }
  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    guard offset == 8, bytes.count == 4 else { return }
    var value: UInt32 = 0
    for i in bytes.indices { value |= UInt32(bytes[i]) << UInt32(8 * i) }
    state.withLock { $0.drivers = value }
  }
  public func observeConfiguration(_ changed: @escaping @Sendable () -> Void) {
    state.withLock { $0.observer = changed }
  }
  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    try EchoDevice().makeHandler(for: group, features: features)
  }
}
