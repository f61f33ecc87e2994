internal import HostIO
internal import Storage
internal import Virtio

/// A request that the host works on.
struct InFlightRequest: ~Copyable {
  let chain: DescriptorChain
  var transfer: DiskTransfer

  init(_ chain: consuming DescriptorChain, _ operation: DiskOperation, segments: Range<Int>) {
    self.chain = chain
    transfer = DiskTransfer(operation, segments: segments)
  }
}

extension DiskRing {
  /// Queues a request's next part.
  @inline(__always)
  mutating func queue(_ request: inout InFlightRequest, of work: BlockWork, tag: UInt64) -> IOUring.Queued {
    let action = request.transfer.operation.rangeAction
    return queue(&request.transfer, of: work.disk.file, request.chain.readable, request.chain.writable, tag: tag) { i in
      action.flatMap { work.checkedRange(i, of: request.chain, $0) }
    }
  }
}
