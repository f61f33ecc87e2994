internal import DMA
internal import HostIO
internal import Virtio

/// Does a block device's requests one after the other, each to its end.
final class BlockHandler: QueueHandler {
  /// Requests done before the driver hears of them: the last of a batch must not wait for ever more behind it.
  static var batch: Int { 64 }

  private let work: BlockWork

  init(_ work: BlockWork) { self.work = work }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    try Self.run(work, &queues[index])
  }

  private static func run(_ work: BlockWork, _ queue: inout Virtqueue) throws(QueueError) {
    work.begin(on: queue)
    var left = batch
    while left > 0, var chain = try queue.next() {
      left -= 1
      if chain.fault != nil {
        try work.refuse(chain, in: &queue)
        continue
      }
      let outcome: BlockOutcome
      switch BlockRequest(chain, work.terms, sectorCount: work.disk.sectorCount) {
      case .read(let position, let count): outcome = work.read(&chain, at: position, count: count)
      case .write(let position, let count): outcome = work.write(&chain, at: position, count: count, durable: work.isDurable)
      case .getID: outcome = work.getID(chain)
      case .flush:
        // Slow: what was done before it is shown first, and what comes after it waits for the next round.
        queue.publish()
        left = 0
        outcome = work.flush()
      case .discard(let ranges): outcome = work.perform(.discard, chain, ranges: ranges)
      case .writeZeroes(let ranges): outcome = work.perform(.writeZeroes, chain, ranges: ranges)
      case .secureErase(let ranges): outcome = work.perform(.secureErase, chain, ranges: ranges)
      case .refused(let status): outcome = BlockOutcome(status: status)
      case .withoutStatus:
        try work.refuse(chain, in: &queue)
        continue
      }
      work.complete(chain, outcome, in: &queue)
      if !work.disk.file.isMemory { queue.lookAtClock() }
    }
  }
}
