import DMA
import HostIO
import Synchronization
import Virtio
import VirtioServing

/// A device that takes chains and gives them back when a test says so: slow input and output, at will.
///
/// Each chain's device-writable memory is filled with 0x5a when it is completed, not before: a write that came too late
/// would show.
final class HoldingDevice: VirtioDevice {
  let id = DeviceID(rawValue: 60)
  let features: Features = .ring
  let maxQueueSizes: [UInt16]
  /// One a queue: each worker has its own to watch.
  let releases: [EventFD]
  var release: EventFD { releases[0] }
  /// Chains held now.
  let held = Atomic<Int>(0)
  /// Signalled whenever chains were taken.
  let taken: EventFD
  private let failures: Bool

  init(queues: Int = 1, failing: Bool = false) throws {
    maxQueueSizes = Array(repeating: 64, count: queues)
    releases = try (0..<queues).map { _ in try EventFD() }
    taken = try EventFD()
    failures = failing
  }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    if failures { throw DeviceError("no handler today") }
    return Handler(self, group.lowerBound)
  }

  private final class Handler: QueueHandler {
    private let device: HoldingDevice
    private var chains = SlotTable<Held>(capacity: 256)
    private struct Held: ~Copyable {
      var queue: Int
      var chain: DescriptorChain
    }

    private let release: EventFD

    init(_ device: HoldingDevice, _ index: Int) {
      self.device = device
      release = device.releases[index]
    }

    var watched: [WatchedDescriptor] { [WatchedDescriptor(descriptor: release.rawValue, token: 7)] }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      var count = 0
      while let chain = try queues[index].next() {
        _ = chains.insert(Held(queue: index, chain: chain))
        count += 1
      }
      if count > 0 {
        device.held.add(count, ordering: .sequentiallyConsistent)
        device.taken.signal()
      }
    }

    func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
      _ = try? release.drain()
      giveBack(&queues)
    }

    func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) { giveBack(&queues) }

    private func giveBack(_ queues: inout QueueSet) {
      for slot in 0..<chains.capacity {
        guard let held = chains.remove(slot) else { continue }
        let count = held.chain.writable.byteCount
        let bytes = [UInt8](repeating: 0x5a, count: count)
        _ = held.chain.writable.copy(bytes.span, to: 0)
        device.held.subtract(1, ordering: .sequentiallyConsistent)
        queues[held.queue].complete(held.chain, written: count)
      }
    }
  }
}

/// Hears of queues that failed.
final class Troubles: DeviceEvents {
  private let errors = Mutex<[Int: QueueError]>([:])
  let happened: EventFD
  init() throws { happened = try EventFD() }
  func needsReset(_ index: Int, _ error: QueueError) {
    errors.withLock { $0[index] = error }
    happened.signal()
  }
  func error(_ index: Int) -> QueueError? { errors.withLock { $0[index] } }
}
