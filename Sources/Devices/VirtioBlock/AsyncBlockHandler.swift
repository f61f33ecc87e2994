internal import Storage
internal import HostIO
internal import Virtio

/// Does a block device's requests through io_uring, many at once.
final class AsyncBlockHandler: QueueHandler {
  private var flights: InFlightRequests
  private let event: EventFD
  private let index: Int

  /// - Parameters:
  ///   - index: the one queue it serves, of at most `depth` descriptors.
  ///   - shortcuts: what the host has at hand is done on the spot.
  init(_ work: BlockWork, queue index: Int, depth: Int, shortcuts: Bool) throws(HostError) {
    let event = try EventFD()
    let ring = try IOUring(entries: depth)
    try ring.signal(event)
    // Only saves a look-up per request.
    try? ring.register(work.disk.file)
    self.event = event
    self.index = index
    flights = InFlightRequests(work, ring, event, depth: depth, shortcuts: shortcuts)
  }

  var watched: [WatchedDescriptor] { [WatchedDescriptor(descriptor: event.rawValue, token: 0, reportsChanges: true)] }

  var inFlight: Int { flights.count }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    try flights.take(from: &queues[index])
  }

  func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
    guard queues.isRunning(index) else { return }
    flights.reap(into: &queues[index])
  }

  func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) {
    guard queues.isRunning(index), step != .finish else { return }
    flights.callOff(leaving: step == .handOver, from: &queues[index])
  }
}
