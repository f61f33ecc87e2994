internal import DMA
internal import HostIO
internal import Virtio

/// The request queue's work. Its thread waits for endpoints' queue threads, which wait for no other thread.
final class IOMMURequestHandler: QueueHandler {
  private let device: IOMMUDevice

  init(_ device: IOMMUDevice) { self.device = device }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while let chain = try queues[index].next() {
      let written = serve(chain.readable, chain.writable)
      queues[index].complete(chain, written: written)
      // An unmap waits for the users of the pages.
      queues[index].lookAtClock()
    }
  }

  /// Serves a request, and returns the bytes written: 0 when there is no telling what is asked for, or no room to
  /// answer.
  private func serve(_ readable: borrowing BufferSegments, _ writable: borrowing BufferSegments) -> Int {
    var block = InlineArray<72, UInt8>(repeating: 0)
    var bytes = block.mutableSpan
    let count = readable.copy(from: 0, into: &bytes)
    guard let request = IOMMURequest(block.span.extracting(..<count)), writable.byteCount >= IOMMULayout.tailSize,
      device.serves(request.type)
    else { return 0 }
    guard case .probe(let endpoint) = request else {
      // The status is written when everything is done, and seen later still.
      return finish(device.perform(request), writable, at: 0)
    }
    let size = Int(device.options.probeSize)
    guard writable.byteCount >= size + IOMMULayout.tailSize else {
      // No property; and what is said to be written is written.
      let room = writable.byteCount - IOMMULayout.tailSize
      _ = writable.zero(from: 0, count: room)
      return finish(.invalid, writable, at: room)
    }
    let status = device.perform(request)
    if status == .ok {
      _ = writable.copy(device.properties(of: endpoint).span, to: 0)
    } else {
      _ = writable.zero(from: 0, count: size)
    }
    return finish(status, writable, at: size)
  }

  /// Writes the tail: the status, and three reserved bytes.
  private func finish(_ status: IOMMUStatus, _ writable: borrowing BufferSegments, at offset: Int) -> Int {
    writable.write(UInt32(status.rawValue), at: offset) ? offset + IOMMULayout.tailSize : 0
  }
}

/// The event queue's work: a buffer is taken when there is a fault to report, and not before.
final class IOMMUEventHandler: QueueHandler {
  private let faults: FaultReports

  init(_ faults: FaultReports) { self.faults = faults }

  var watched: [WatchedDescriptor] {
    [WatchedDescriptor(descriptor: faults.arrived.rawValue, token: 0, reportsChanges: true)]
  }

  func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
    guard queues.isRunning(IOMMULayout.eventQueue) else { return }
    try available(IOMMULayout.eventQueue, in: &queues)
  }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while !faults.isEmpty {
      guard let chain = try queues[index].next() else { return }
      // One that is too small comes back empty, and the report waits for the next (§5.13.6.9.2).
      guard chain.writable.byteCount >= IOMMULayout.faultSize, let fault = faults.take() else {
        queues[index].complete(chain, written: 0)
        continue
      }
      let written = chain.writable.copy(fault.bytes.span, to: 0)
      queues[index].complete(chain, written: written)
    }
    // A report that comes from here on makes the descriptor ready.
    queues[index].rest()
  }
}
