internal import HostIO
internal import Storage
internal import Virtio

/// Does a block device's requests: many at once through io_uring, or one after the other, each to its end.
final class BlockHandler: QueueHandler {
  private var requests: InFlightRequests
  private let event: EventFD?
  private let index: Int

  /// A handler without a ring.
  ///
  /// - Parameter index: the one queue it serves.
  init(_ work: BlockWork, queue index: Int) {
    self.index = index
    event = nil
    requests = InFlightRequests(work, DiskRing(), depth: 1, inline: false)
  }

  /// A handler that does its requests through io_uring.
  ///
  /// - Parameters:
  ///   - index: the one queue it serves, of at most `depth` descriptors.
  ///   - inline: what the host has at hand is done on the spot.
  init(_ work: BlockWork, queue index: Int, depth: Int, inline: Bool) throws(HostError) {
    let event = try EventFD()
    let ring = try DiskRing(depth: depth, signalling: event, for: work.disk.file)
    self.event = event
    self.index = index
    requests = InFlightRequests(work, ring, depth: depth, inline: inline)
  }

  var watched: [WatchedDescriptor] {
    event.map { [WatchedDescriptor(descriptor: $0.rawValue, token: 0, reportsChanges: true)] } ?? []
  }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    try requests.take(from: &queues[index])
  }

  func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {
    guard queues.isRunning(index) else { return }
    requests.reap(into: &queues[index])
  }

  func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) {
    guard queues.isRunning(index), step != .finish else { return }
    requests.callOff(leaving: step == .handOver, from: &queues[index])
  }
}
