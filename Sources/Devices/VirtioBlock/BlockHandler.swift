internal import Storage
internal import HostIO
internal import Virtio

/// Does a block device's requests one after the other, each to its end.
final class BlockHandler: QueueHandler {
  /// Requests completed before the driver is notified: the last of a batch must not wait for ever more behind it.
  static var batch: Int { 64 }

  private let work: BlockWork

  init(_ work: BlockWork) { self.work = work }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    try Self.run(work, &queues[index])
  }

  private static func run(_ work: BlockWork, _ queue: inout Virtqueue) throws(QueueError) {
    work.begin(on: queue)
    // Memory has nothing to wait for. Otherwise the round's mappings are released meanwhile, except the chain's own.
    let mayWait = !work.disk.file.isMemory
    var left = batch
    while left > 0, var chain = try queue.next() {
      left -= 1
      if chain.fault != nil {
        try work.refuse(chain, in: &queue)
        continue
      }
      let request = BlockRequest(chain, work.terms, sectorCount: work.disk.sectorCount)
      if case .withoutStatus = request {
        try work.refuse(chain, in: &queue)
        continue
      }
      // What comes after a flush waits for the next round, and what was done before it is shown first.
      if case .flush = request {
        queue.publish()
        left = 0
      }
      if mayWait { queue.letGo() }
      let outcome = perform(request, work, &chain)
      if mayWait {
        queue.takeHold()
        queue.lookAtClock()
      }
      work.complete(chain, outcome, in: &queue)
    }
  }

  private static func perform(
    _ request: BlockRequest, _ work: BlockWork, _ chain: inout DescriptorChain
  ) -> BlockOutcome {
    switch request {
    case .read(let position, let count): work.read(&chain, at: position, count: count)
    case .write(let position, let count): work.write(&chain, at: position, count: count, durable: work.isDurable)
    case .getID: work.getID(chain)
    case .flush: work.flush()
    case .discard(let ranges): work.perform(.discard, chain, ranges: ranges)
    case .writeZeroes(let ranges): work.perform(.writeZeroes, chain, ranges: ranges)
    case .secureErase(let ranges): work.perform(.secureErase, chain, ranges: ranges)
    case .refused(let status): BlockOutcome(status: status)
    case .withoutStatus: .ioError
    }
  }
}
