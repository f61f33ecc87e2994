public import DMA

/// Why a device cannot start with what it was given.
public struct DeviceError: Error, Hashable, Sendable, CustomStringConvertible {
  public var description: String
  /// An error with a sentence for the log.
  public init(_ description: String) { self.description = description }
}

/// What a device is: its identity, what it offers, its configuration. Called from control threads, several at once;
/// what a device does is in its ``QueueHandler``.
public protocol VirtioDevice: Sendable {
  var id: DeviceID { get }
  /// What it offers, ring features included and VIRTIO_F_ACCESS_PLATFORM excluded: transports add that (§2.2).
  var features: Features { get }
  /// For each queue, the most descriptors it may have: 1...32768.
  var maxQueueSizes: [UInt16] { get }
  /// Queues that share a thread, in order, each queue in one group.
  var queueGroups: [Range<Int>] { get }
  /// Whether every request is a single buffer, so that no driver uses an indirect table for it (§2.7.5.3).
  var hasSingleBufferRequests: Bool { get }
  /// Bytes of configuration space (§2.5).
  var configurationSize: Int { get }
  /// Fills `bytes` from the configuration space; bytes past its end read as zero.
  func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>)
  /// A driver's write. Fields that are read-only ignore it.
  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>)
  /// What the driver has accepted; called when FEATURES_OK stays set (§3.1.1), before any queue starts. The device's
  /// server calls it; a device that needs the features earlier gets them from ``makeHandler(for:features:)`` at the
  /// latest.
  func accepted(_ features: Features)
  /// The driver has reset the device (§2.4): its queues have stopped, and what it negotiated is forgotten.
  /// Configuration that a reset leaves alone stays.
  func reset()
  /// The machine is reset: what only power-on sets is as it was then. ``reset()`` has come before.
  func systemReset()
  /// The work of one group of queues, for a driver that negotiated `features`. The handler lives on one thread.
  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler
  /// Called once by the device's server; the device calls `changed` whenever its configuration space changed by itself.
  func observeConfiguration(_ changed: @escaping @Sendable () -> Void)
  /// State beyond rings and configuration that a migration has to carry; empty when there is none.
  func saveState() -> [UInt8]
  /// Takes over what ``saveState()`` of the same kind of device returned.
  func restoreState(_ bytes: [UInt8]) throws(DeviceError)
}

extension VirtioDevice {
  public var queueGroups: [Range<Int>] { maxQueueSizes.indices.map { $0..<$0 + 1 } }
  public var hasSingleBufferRequests: Bool { false }
  public var configurationSize: Int { 0 }
  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    for i in bytes.indices { bytes[i] = 0 }
  }
  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {}
  public func accepted(_ features: Features) {}
  public func reset() {}
  public func systemReset() {}
  public func observeConfiguration(_ changed: @escaping @Sendable () -> Void) {}
  public func saveState() -> [UInt8] { [] }
  public func restoreState(_ bytes: [UInt8]) throws(DeviceError) {
    guard bytes.isEmpty else {
      throw DeviceError("this device has no state to restore, and was given \(bytes.count) bytes")
    }
  }
}

/// A device that is the same wherever it is served: it takes no options.
public protocol OptionlessDevice: VirtioDevice {
  init()
  /// How a back-end of the kind is checked, and what the kind is called.
  static var probe: DeviceProbe { get }
  /// What it is or gives, in a few words, for help texts.
  static var summary: String { get }
}

/// A file descriptor whose readiness the worker reports to the handler.
public struct WatchedDescriptor: Hashable, Sendable {
  /// What to watch; it stays open while the handler runs.
  public var descriptor: Int32
  /// Comes back in ``QueueHandler/ready(_:in:)``.
  public var token: UInt64
  /// Reports each change once instead of the state: an eventfd that is watched so need never be drained.
  public var reportsChanges: Bool
  /// Watches `descriptor` for being readable.
  public init(descriptor: Int32, token: UInt64, reportsChanges: Bool = false) {
    self.descriptor = descriptor
    self.token = token
    self.reportsChanges = reportsChanges
  }
}

/// What a device does with a group of queues, on the one thread that owns them.
///
/// Pop a chain only with something to do for it: a chain held while waiting for a peer holds its mappings.
public protocol QueueHandler: AnyObject {
  /// Chains may be available on queue `index`: take them until ``Virtqueue/next()`` yields nil.
  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError)
  /// A watched descriptor is ready.
  func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError)
  /// Descriptors to watch while the handler runs.
  var watched: [WatchedDescriptor] { get }
  /// Queue `index` stops while chains of it are in flight: make them end. Returns at once, without waiting: the queue
  /// goes on, without new chains, until none is left, and completions come as before, for example in ``ready(_:in:)``.
  /// Called within a round, once for each step.
  func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet)
}

/// How chains in flight come to their ends when their queue stops.
public enum StopStep: Hashable, Sendable {
  /// They are completed. Chains that wait for something which may never come are to be given up now.
  case finish
  /// Work that has not begun may be left to the successor (``Virtqueue/leave(_:)``) rather than waited for; called
  /// first, for queues that ``Virtqueue/canLeave``.
  case handOver
  /// It has taken ten seconds: work that can be cancelled is cancelled, and fails.
  case giveUp
}

extension QueueHandler {
  public func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) {}
  public var watched: [WatchedDescriptor] { [] }
  public func stop(_ index: Int, _ step: StopStep, in queues: inout QueueSet) {}
}

/// The queues of a group, by their index in the device. A queue that is not running traps when named: handlers are only
/// asked about running ones.
public struct QueueSet: ~Copyable {
  @usableFromInline var queues: FixedArray<Virtqueue?>
  public let range: Range<Int>

  public init(_ range: Range<Int>) {
    self.range = range
    queues = FixedArray(count: range.count) { _ in nil }
  }

  /// Whether queue `index` runs.
  public func isRunning(_ index: Int) -> Bool {
    guard range.contains(index) else { return false }
    return queues[index - range.lowerBound] != nil
  }

  /// Starts or replaces a queue.
  public mutating func insert(_ queue: consuming Virtqueue) {
    let index = queue.index
    precondition(range.contains(index))
    queues[index - range.lowerBound] = consume queue
  }

  /// Stops a queue.
  public mutating func remove(_ index: Int) -> Virtqueue? {
    precondition(range.contains(index))
    return queues[index - range.lowerBound].take()
  }

  @inlinable public subscript(_ index: Int) -> Virtqueue {
    _read {
      precondition(range.contains(index))
      yield queues[index - range.lowerBound]!
    }
    _modify {
      precondition(range.contains(index))
      yield &queues[index - range.lowerBound]!
    }
  }
}
