internal import HostIO
internal import Logging
internal import Virtio
internal import VirtioServing

/// Notices that the guest's memory is not shared with this process, which nothing else reports: a guest would hang
/// without any message.
///
/// Two signs: a ring is to run and there is no memory; and a ring was kicked and shows nothing, because the guest
/// writes to a copy of the memory that was passed. Of the second one two kicks are needed, since QEMU kicks when it
/// starts a ring, and some time, in which a request would have been seen.
struct SharingAdvice {
  /// What to do about it, in the words of the best-known front-end.
  static let remedy = "QEMU shares it with share=on on its memory backend and memory-backend= on the machine"

  /// Signalled by the second kick of a queue.
  let kicked: EventFD
  fileprivate var timer: TimerFD?
  fileprivate var isTold = false

  init() throws(HostError) { kicked = try EventFD() }

  /// Another device starts on the same connection: advice that was logged for the last one may apply again.
  mutating func renew() { isTold = false }
}

extension BackendSession {
  /// Virtqueue `index` is to run, and there is no memory at all.
  func missesMemory(_ index: Int) {
    advise(
      "virtqueue \(index) is to run, and none of the guest's memory is shared with this back-end. "
        + SharingAdvice.remedy
    )
  }

  /// A queue was kicked: in a while there should be a request.
  func heardKick() {
    _ = try? sharing.kicked.drain()
    guard sharing.timer == nil, !sharing.isTold, let timer = try? TimerFD() else { return }
    try? timer.arm(after: options.kickPatience)
    try? poller.add(timer.rawValue, token: Token.kickTimer)
    sharing.timer = timer
  }

  /// The while is over.
  func lookForRequests() {
    if let timer = sharing.timer { try? poller.remove(timer.rawValue) }
    sharing.timer = nil
    // Other code reports requests that wait for a translation, or were refused one.
    guard runner.counts.allSatisfy({ $0.requests == 0 && $0.faults == 0 }),
      !isTranslated || iotlb.statistics.mappings > 0,
      vrings.indices.contains(where: runner.isRunning)
    else { return }
    advise(
      "a virtqueue was kicked, and nothing is in it as far as this back-end can see: "
        + "if the guest hangs, its memory is not shared. "
        + SharingAdvice.remedy)
  }

  private func advise(_ sentence: String) {
    guard !sharing.isTold else { return }
    sharing.isTold = true
    log.warning("\(sentence)")
    report.advised(sentence)
  }
}
