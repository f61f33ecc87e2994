internal import DMA
public import DriverDMA
public import Virtio

/// How a driver is to work with its device.
public struct DriverOptions {
  /// How large its queues are.
  public var queue: QueueOptions
  /// Features that it does not accept, though offered: VIRTIO_F_RING_PACKED for a split ring, or any other for tests.
  public var withheld: Features
  /// How long it waits for the device.
  public var wait: BoundedWait

  /// Everything that the device offers and the driver knows, unless said otherwise.
  public init(queue: QueueOptions = QueueOptions(), withheld: Features = [], wait: BoundedWait = BoundedWait()) {
    self.queue = queue
    self.withheld = withheld
    self.wait = wait
  }

  /// What every driver here can do with a ring.
  static var ringFeatures: Features {
    [.version1, .indirectDescriptors, .eventIndex, .ringPacked, .inOrder, .notificationData, .ringReset]
  }
}

/// A request's number, never used twice by the same driver.
@frozen public struct RequestTag: Hashable, Sendable {
  /// Counts from 1.
  public var rawValue: UInt64
  @inlinable init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// A request that has ended.
@frozen public struct Completion: Hashable, Sendable {
  /// What submitting it returned.
  public var tag: RequestTag
  /// Bytes that the device wrote, from the start of the device-writable part on.
  public var written: UInt32
  /// Why it failed, or nil.
  public var error: DriverError?
}

/// The numbers of requests under way, and those that ended during a wait for another.
struct RequestLedger: ~Copyable {
  private var tags: FixedArray<UInt64>
  private var last: UInt64 = 0
  private var ended = FIFO<Completion>()

  init(size: UInt16) {
    tags = FixedArray(count: Int(size)) { _ in 0 }
  }

  mutating func begin(_ id: UInt16) -> RequestTag {
    last += 1
    tags[Int(id)] = last
    return RequestTag(rawValue: last)
  }

  func tag(of id: UInt16) -> RequestTag { RequestTag(rawValue: tags[Int(id)]) }

  /// Keeps a completion until it is asked for.
  mutating func keep(_ completion: Completion) { ended.append(completion) }

  /// The oldest that was kept.
  mutating func take() -> Completion? { ended.popFirst() }

  /// That of one request, if it was kept.
  mutating func take(_ tag: RequestTag) -> Completion? {
    ended.removeFirst { $0.tag == tag }
  }
}
