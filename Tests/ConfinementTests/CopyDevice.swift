import DMA
import Synchronization
import Virtio

/// What a device under test was given, for the test to read.
final class Notes: Sendable {
  private let state = Mutex<(served: Int, faults: [DMAFault])>((0, []))
  func served() { state.withLock { $0.served += 1 } }
  func fault(_ fault: DMAFault) { state.withLock { $0.faults.append(fault) } }
  var count: Int { state.withLock { $0.served } }
  var faults: [DMAFault] { state.withLock { $0.faults } }
}

/// Copies what it may read to where it may write. A chain it cannot reach gets the status 0xee.
struct CopyDevice: VirtioDevice {
  static let failure: UInt8 = 0xee
  let notes: Notes
  var id: DeviceID { DeviceID(rawValue: 0) }
  var features: Features { .ring }
  var maxQueueSizes: [UInt16] { [32768, 32768] }
  var queueGroups: [Range<Int>] { [0..<2] }
  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    CopyHandler(notes)
  }
}

final class CopyHandler: QueueHandler {
  private let notes: Notes
  init(_ notes: Notes) { self.notes = notes }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while let chain = try queues[index].next() {
      if let fault = chain.fault {
        notes.fault(fault)
        _ = chain.writeStatus(CopyDevice.failure)
        queues[index].complete(chain, written: 0)
        continue
      }
      var bytes = [UInt8](repeating: 0, count: chain.readable.byteCount)
      var span = bytes.mutableSpan
      _ = chain.readable.copy(from: 0, into: &span)
      let written = chain.writable.copy(bytes.span, to: 0)
      notes.served()
      queues[index].complete(chain, written: written)
    }
  }
}
