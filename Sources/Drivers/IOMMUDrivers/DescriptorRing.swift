import DriverDMA

/// A page of 16-byte descriptors that a unit works off, and the word into which it writes how far it is.
struct DescriptorRing {
  /// Descriptors that fit.
  static var capacity: UInt64 { 256 }
  let start: UInt64
  let status: UInt64
  private let memory: TableMemory
  /// Bytes from the start to where the next descriptor goes.
  private(set) var tail: UInt64 = 0
  /// Posted and not waited for.
  private(set) var pending: UInt64 = 0
  /// The last number that the unit was asked to write.
  private(set) var token: UInt64 = 0
  /// Something posted before did not happen, and the error has not been reported yet.
  var hasFailed = false
  /// The unit does not even start anew.
  var isBroken = false

  init(in memory: TableMemory) throws(DMAError) {
    self.memory = memory
    start = try memory.allocate()
    status = try memory.allocate()
  }

  /// Whether there is room for a wait only; one more place stays free, which tells a full ring from an empty one.
  var isFull: Bool { pending >= Self.capacity - 2 }

  mutating func put(_ low: UInt64, _ high: UInt64) {
    memory.store(high, at: start + tail + 8)
    memory.store(low, at: start + tail)
    tail = (tail + 16) % (Self.capacity * 16)
    pending += 1
  }

  /// A number that the unit has not written yet; 32 bits of it differ from any before.
  mutating func nextToken() -> UInt64 {
    token = (token + 1) & 0xFFFF_FFFF
    return token
  }

  /// Whether the unit has written the last number.
  var isDone: Bool { memory.load(status) & 0xFFFF_FFFF == token }

  /// The wait for the posted descriptors is over, successful or not. Returns whether an earlier one had failed.
  mutating func settle() -> Bool {
    pending = 0
    defer { hasFailed = false }
    return hasFailed
  }

  /// Empty, as the unit sees it when it starts anew.
  mutating func clear() {
    tail = 0
    pending = 0
  }
}
