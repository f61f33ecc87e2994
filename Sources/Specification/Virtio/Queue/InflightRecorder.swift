public import DMA

/// One descriptor as a ring or an indirect table holds it (§2.7.5, §2.8).
public struct RingDescriptor: Hashable, Sendable {
  public var address: DMAAddress
  public var length: UInt32
  /// Split: next. Packed: buffer ID.
  public var id: UInt16
  public var flags: UInt16

  public init(address: DMAAddress, length: UInt32, id: UInt16, flags: UInt16) {
    self.address = address
    self.length = length
    self.id = id
    self.flags = flags
  }

  @inlinable init(_ word0: UInt64, _ word1: UInt64) {
    address = DMAAddress(UInt64(littleEndian: word0))
    let rest = UInt64(littleEndian: word1)
    length = UInt32(truncatingIfNeeded: rest)
    // Split: flags then next. Packed: id then flags. The rings swap where they must.
    id = UInt16(truncatingIfNeeded: rest &>> 48)
    flags = UInt16(truncatingIfNeeded: rest &>> 32)
  }

  static var next: UInt16 { 1 }
  static var write: UInt16 { 2 }
  static var indirect: UInt16 { 4 }
}

/// A chain that was under way when a back-end died, to be done again.
public struct InflightChain: Hashable, Sendable {
  /// Split: the head. Packed: the buffer ID.
  public var id: UInt16
  /// Packed: its descriptors, which the ring may not hold any more. Split: empty.
  public var descriptors: [RingDescriptor]
  /// The recorder's index of the chain, for ``InflightRecorder/completing(_:)``.
  public var record: UInt16

  public init(id: UInt16, descriptors: [RingDescriptor] = [], record: UInt16) {
    self.id = id
    self.descriptors = descriptors
    self.record = record
  }
}

/// Where a queue goes on, and what it does first.
public struct QueueResumption: Hashable, Sendable {
  /// Where it goes on.
  public var state: QueueState
  /// Chains that were under way, oldest first.
  public var again: [InflightChain]

  /// A queue that goes on at `state`, after `again`.
  public init(state: QueueState, again: [InflightChain] = []) {
    self.state = state
    self.again = again
  }
}

/// Writes down which chains are under way, where a successor of this process finds it. Called on the queue's thread.
public protocol InflightRecorder: AnyObject {
  /// Whether a predecessor may have left chains that are still to be done, as far as that is known before the ring is
  /// reached. Called before ``resume(at:used:flags:)`` only.
  var mayHoldChains: Bool { get }
  /// Called once, when the ring can be reached and before any of it is taken: what did a predecessor leave?
  ///
  /// - Parameters:
  ///   - state: where the transport says to go on.
  ///   - used: split: the ring's used index; nil if it cannot be read.
  ///   - flags: packed: the flags of the descriptor in a slot, which is below the queue's size.
  func resume(at state: QueueState, used: UInt16?, flags: (UInt16) -> UInt16) -> QueueResumption
  /// A split chain was popped. Returns its record.
  func popped(head: UInt16) -> UInt16
  /// A packed chain was popped. Returns its record, or nil when there is no room for it.
  func popped(id: UInt16, descriptors: [RingDescriptor]) -> UInt16?
  /// The used entry of a chain will be written next.
  func completing(_ record: UInt16)
  /// The used entries announced with ``completing(_:)`` are published, packed ones each by itself. `used` is where the
  /// next one goes.
  func published(used: UInt16, wrap: Bool)
}
