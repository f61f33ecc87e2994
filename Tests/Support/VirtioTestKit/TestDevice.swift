public import DMA
import Synchronization
public import Virtio

/// A device of the shape that a test needs. It answers each chain at once, and remembers what it was given.
public final class TestDevice: VirtioDevice {
  /// How many bytes were written; nil keeps the chain for ever.
  public typealias Answer = @Sendable (borrowing DescriptorChain) -> Int?
  private struct State {
    var negotiated: [Features] = []
    var served = 0
    var faults: [DMAFault] = []
  }
  private let state = Mutex(State())
  public let id: DeviceID
  public let features: Features
  public let maxQueueSizes: [UInt16]
  public let queueGroups: [Range<Int>]
  private let configuration: [UInt8]
  private let resting: Set<Int>
  private let failed: @Sendable () -> Void
  private let answer: Answer

  /// - Parameters:
  ///   - queues: the most descriptors of each.
  ///   - configuration: the configuration space, which a driver cannot write.
  ///   - resting: queues whose buffers are left where they are.
  ///   - failed: called when a ring is broken.
  public init(
    _ id: DeviceID = .entropy, features: Features = .ring, queues: [UInt16] = [256], groups: [Range<Int>]? = nil,
    configuration: [UInt8] = [], resting: Set<Int> = [], failed: @escaping @Sendable () -> Void = {},
    answer: @escaping Answer
  ) {
    self.id = id
    self.features = features
    maxQueueSizes = queues
    queueGroups = groups ?? queues.indices.map { $0..<$0 + 1 }
    self.configuration = configuration
    self.resting = resting
    self.failed = failed
    self.answer = answer
  }

  /// Copies what it may read to where it may write. A chain it cannot reach gets the status 0xee.
  public static func copying(queues: [UInt16] = [32768, 32768], groups: [Range<Int>] = [0..<2]) -> TestDevice {
    TestDevice(DeviceID(rawValue: 0), queues: queues, groups: groups) { chain in
      if chain.fault == nil { return chain.writable.copy(chain.readable.bytes().span, to: 0) }
      _ = chain.writeStatus(copyFailure)
      return 0
    }
  }
  public static let copyFailure: UInt8 = 0xee

  /// What was negotiated, for each handler that was made.
  public var negotiated: [Features] { state.withLock { $0.negotiated } }
  /// Chains without a fault.
  public var served: Int { state.withLock { $0.served } }
  /// Faults of the others.
  public var faults: [DMAFault] { state.withLock { $0.faults } }

  public var configurationSize: Int { configuration.count }
  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    for i in bytes.indices { bytes[i] = configuration.indices.contains(offset + i) ? configuration[offset + i] : 0 }
  }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    state.withLock { $0.negotiated.append(features) }
    return Handler(self)
  }

  private func noteChain(_ fault: DMAFault?) {
    state.withLock { if let fault { $0.faults.append(fault) } else { $0.served += 1 } }
  }

  private final class Handler: QueueHandler {
    private let device: TestDevice
    init(_ device: TestDevice) { self.device = device }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      if device.resting.contains(index) { return queues[index].rest() }
      do throws(QueueError) {
        while let chain = try queues[index].next() {
          device.noteChain(chain.fault)
          if let written = device.answer(chain) { queues[index].complete(chain, written: written) }
        }
      } catch {
        device.failed()
        throw error
      }
    }
  }
}
