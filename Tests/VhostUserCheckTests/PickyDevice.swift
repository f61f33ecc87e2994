import DMA
import Synchronization
import Virtio
import VirtioTestKit

/// A disk that knows one request, the read of the checks, and takes anything else badly. It has no data.
final class PickyDevice: Sendable {
  /// What it does about a chain, or a ring, that it does not like.
  enum Temper: String, CaseIterable, CustomStringConvertible, Sendable {
    case dies, closes, sulks
    var description: String { rawValue }
  }
  /// What is done about it outside.
  let outcry: Mutex<(@Sendable () -> Void)?> = Mutex(nil)
  /// It takes no request any more.
  let sulks = Atomic<Bool>(false)
  let temper: Temper

  init(_ temper: Temper) { self.temper = temper }

  var device: TestDevice {
    TestDevice(.block, configuration: [UInt8](repeating: 0, count: 60), failed: complain) { [self] chain in
      if sulks.load(ordering: .sequentiallyConsistent) { return nil }
      let isFine =
        chain.fault == nil && chain.readable.byteCount == 16 && chain.readable.segmentCount == 1
        && chain.writable.byteCount == 513
      guard isFine else {
        complain()
        return 0
      }
      return chain.writable.zero(from: 0, count: 513)
    }
  }

  private func complain() {
    if temper == .sulks { sulks.store(true, ordering: .sequentiallyConsistent) }
    outcry.withLock { $0 }?()
  }
}
