/// Guest-physical pages, handed out once each. One thread at a time.
public final class Frames {
  /// Bytes of a page.
  public static let size: UInt64 = 4096
  private var next: UInt64
  private let end: UInt64
  private var scattered: [UInt64] = []
  private var random: UInt64 = 0x9e37_79b9_7f4a_7c15

  init(from start: UInt64, to end: UInt64) {
    next = start
    self.end = end
  }

  /// Adjacent pages; the address of the first.
  public func take(_ count: Int = 1) throws(QTestError) -> UInt64 {
    let first = next
    guard first + UInt64(count) * Self.size <= end else { throw .missing("guest memory for \(count) pages") }
    next = first + UInt64(count) * Self.size
    return first
  }

  /// Pages of which no two that follow each other are adjacent in guest memory (the same order in every run).
  public func takeScattered(_ count: Int) throws(QTestError) -> [UInt64] {
    var pages: [UInt64] = []
    while pages.count < count {
      if scattered.count < 64 {
        let first = try take(256)
        scattered += (0..<256).map { first + $0 * Self.size }
      }
      random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let index = Int((random >> 33) % UInt64(scattered.count))
      if let last = pages.last, scattered[index] == last + Self.size || scattered[index] + Self.size == last {
        continue
      }
      scattered.swapAt(index, scattered.count - 1)
      pages.append(scattered.removeLast())
    }
    return pages
  }
}
