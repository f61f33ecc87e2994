import DMA
public import HostIO
public import Synchronization
public import Virtio

/// A device that takes chains and gives them back when a test says so: slow input and output, at will.
///
/// Each chain's device-writable memory is filled when it is completed, not before: a write that came too late would
/// show.
public final class HoldingDevice: VirtioDevice {
  public let id: DeviceID
  public let features: Features = .ring
  public let maxQueueSizes: [UInt16]
  /// One a queue, since each worker has its own to watch: when it is signalled, all that the queue holds is given back.
  public let releases: [EventFD]
  public var release: EventFD { releases[0] }
  /// Chains held now.
  public let held = Atomic<Int>(0)
  /// Signalled whenever chains were taken.
  public let taken: EventFD
  private let fill: UInt8?
  private let failures: Bool

  /// - Parameters:
  ///   - fill: what the device writes; nil: a status of 0, and the rest stays as it is.
  ///   - failing: no handler can be made.
  public init(_ id: DeviceID, fill: UInt8? = nil, queues: Int = 1, size: UInt16 = 256, failing: Bool = false) throws {
    self.id = id
    self.fill = fill
    maxQueueSizes = Array(repeating: size, count: queues)
    releases = try (0..<queues).map { _ in try EventFD() }
    taken = try EventFD()
    failures = failing
  }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    if failures { throw DeviceError("no handler today") }
    return Handler(self, release: releases[group.lowerBound])
  }

  private final class Handler: QueueHandler {
    private let device: HoldingDevice
    private let release: EventFD
    private var chains = SlotTable<Held>(capacity: 256)
    private struct Held: ~Copyable {
      var queue: Int
      var chain: DescriptorChain
    }

    init(_ device: HoldingDevice, release: EventFD) {
      self.device = device
      self.release = release
    }

    var watched: [WatchedDescriptor] { [WatchedDescriptor(descriptor: release.rawValue, token: 7)] }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while let chain = try queues[index].next() {
        _ = chains.insert(Held(queue: index, chain: chain))
        device.held.add(1, ordering: .sequentiallyConsistent)
        device.taken.signal()
      }
    }

    func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
      _ = try? release.drain()
      endAll(.finish, &queues)
    }

    func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) { endAll(step, &queues) }

    private func endAll(_ step: StopStep, _ queues: inout QueueSet) {
      for slot in 0..<chains.capacity {
        guard let held = chains.remove(slot) else { continue }
        device.held.subtract(1, ordering: .sequentiallyConsistent)
        if step == .handOver {
          queues[held.queue].leave(held.chain)
          continue
        }
        let count = held.chain.writable.byteCount
        if let fill = device.fill {
          _ = held.chain.writable.copy([UInt8](repeating: fill, count: count).span, to: 0)
        } else {
          _ = held.chain.writeStatus(0)
        }
        queues[held.queue].complete(held.chain, written: count)
      }
    }
  }
}
