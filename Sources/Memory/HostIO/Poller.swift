internal import CLinux

/// What a descriptor is ready for, or is to be watched for.
public struct Readiness: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// There is something to read, or the end.
  public static let readable = Readiness(rawValue: UInt32(HOST_READABLE))
  /// There is room to write.
  public static let writable = Readiness(rawValue: UInt32(HOST_WRITABLE))
  /// Both directions are closed. Reported whether asked for or not.
  public static let hangup = Readiness(rawValue: UInt32(HOST_HANGUP))
  /// The descriptor is broken. Reported whether asked for or not.
  public static let failed = Readiness(rawValue: UInt32(HOST_FAILED))
  /// The peer will send nothing more.
  public static let peerClosed = Readiness(rawValue: UInt32(HOST_PEER_CLOSED))
  /// When watching: report each change once instead of the state.
  public static let edge = Readiness(rawValue: UInt32(HOST_EDGE))
}

/// The descriptors found ready by one wait, kept in place: no wait allocates.
public struct ReadySet: ~Copyable {
  /// Descriptors that one wait can report; the others come with the next.
  public static var capacity: Int { 64 }
  fileprivate var tokens = InlineArray<64, UInt64>(repeating: 0)
  fileprivate var events = InlineArray<64, UInt32>(repeating: 0)
  /// How many are ready.
  public fileprivate(set) var count = 0

  public init() {}

  /// The places of those that are ready.
  public var indices: Range<Int> { 0..<count }

  /// The token given to `add` for the ready descriptor at `index`, in `0..<count`.
  public func token(_ index: Int) -> UInt64 {
    precondition(index < count)
    return tokens[index]
  }

  /// What it is ready for.
  public func readiness(_ index: Int) -> Readiness {
    precondition(index < count)
    return Readiness(rawValue: events[index])
  }
}

/// Waits for many descriptors (epoll). Any thread may add and remove; one thread waits.
public final class Poller: Sendable {
  private let epoll: FileDescriptor

  public init() throws(HostError) {
    epoll = FileDescriptor(adopting: try check(host_epoll(), "epoll_create1"))
  }

  /// The epoll descriptor itself, readable while something is ready.
  public var rawValue: Int32 { epoll.rawValue }

  /// Watches a descriptor. It has to stay open until removed: closing takes it out silently only if nothing else holds
  /// its description.
  ///
  /// - Throws: EPERM for a regular file, which cannot be watched; EEXIST if it is watched already.
  public func add(_ descriptor: Int32, token: UInt64, for readiness: Readiness = .readable) throws(HostError) {
    try check(host_epoll_add(rawValue, descriptor, readiness.rawValue, token), "epoll_ctl add")
  }

  /// Watches an eventfd for signals.
  public func add(_ event: EventFD, token: UInt64) throws(HostError) {
    try add(event.rawValue, token: token)
  }

  /// Changes what a watched descriptor is watched for, and its token.
  public func modify(_ descriptor: Int32, token: UInt64, for readiness: Readiness) throws(HostError) {
    try check(host_epoll_modify(rawValue, descriptor, readiness.rawValue, token), "epoll_ctl modify")
  }

  /// Stops watching. A set filled earlier may still name the token.
  public func remove(_ descriptor: Int32) throws(HostError) {
    try check(host_epoll_remove(rawValue, descriptor), "epoll_ctl remove")
  }

  /// Waits until something is ready and fills `ready`, from its start.
  ///
  /// - Parameter timeout: nil waits for ever, zero only looks; rounded up to milliseconds.
  /// - Returns: how many are ready; 0 only when the time is over.
  @discardableResult
  public func wait(into ready: inout ReadySet, timeout: Duration? = nil) throws(HostError) -> Int {
    let limit = nanoseconds(timeout)
    var tokens = ready.tokens.mutableSpan
    var events = ready.events.mutableSpan
    // Safe: both arrays have HOST_EPOLL_BATCH elements, and no more are written.
    let count = unsafe tokens.withUnsafeMutableBufferPointer { tokens in
      unsafe events.withUnsafeMutableBufferPointer { events in
        unsafe host_epoll_wait(rawValue, tokens.baseAddress, events.baseAddress, HOST_EPOLL_BATCH, limit)
      }
    }
    ready.count = 0
    ready.count = Int(try check(count, "epoll_wait"))
    return ready.count
  }
}
