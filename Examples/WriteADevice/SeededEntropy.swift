import Virtio

/// virtio-rng whose bytes are the same at every boot: only for guests whose tests must be repeatable.
struct SeededEntropy: VirtioDevice {
  var seed: UInt64
  var id: DeviceID { .entropy }
  var features: Features { .ring }
  var maxQueueSizes: [UInt16] { [64] }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    SeededHandler(seed)
  }
}

/// Lives on one thread and owns its state: no lock, no task.
final class SeededHandler: QueueHandler {
  private var state: UInt64
  init(_ seed: UInt64) { state = seed }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while let chain = try queues[index].next() {
      var block = InlineArray<256, UInt8>(repeating: 0)
      for i in block.indices {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        block[i] = UInt8(truncatingIfNeeded: state >> 56)
      }
      // Fewer bytes than the buffer takes are fine: the driver asks again.
      let written = chain.writable.copy(block.span, to: 0)
      queues[index].complete(chain, written: written)
    }
  }
}
