import DMA
import HostIO
import Virtio

/// A device that takes chains and gives them back when a test says so, with a last byte of 0.
final class HeldDisk: VirtioDevice {
  let id = DeviceID.block
  let features: Features = .ring
  let maxQueueSizes: [UInt16] = [256]
  /// Signalled by the test: everything held is given back.
  let release: EventFD
  /// Signalled whenever a chain was taken.
  let taken: EventFD

  init() throws {
    release = try EventFD()
    taken = try EventFD()
  }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    Handler(self)
  }

  private final class Handler: QueueHandler {
    private let disk: HeldDisk
    private var chains = SlotTable<DescriptorChain>(capacity: 256)

    init(_ disk: HeldDisk) { self.disk = disk }

    var watched: [WatchedDescriptor] { [WatchedDescriptor(descriptor: disk.release.rawValue, token: 0)] }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while let chain = try queues[index].next() {
        _ = chains.insert(chain)
        disk.taken.signal()
      }
    }

    func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
      _ = try? disk.release.drain()
      giveBack(&queues)
    }

    func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) {
      guard step == .handOver else { return giveBack(&queues) }
      for slot in 0..<chains.capacity {
        if let chain = chains.remove(slot) { queues[index].leave(chain) }
      }
    }

    private func giveBack(_ queues: inout QueueSet) {
      for slot in 0..<chains.capacity {
        guard let chain = chains.remove(slot) else { continue }
        _ = chain.writeStatus(0)
        let count = chain.writable.byteCount
        queues[0].complete(chain, written: count)
      }
    }
  }
}
