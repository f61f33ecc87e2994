/// An address in the machine's physical memory, as the guest numbers it.
@frozen public struct GuestAddress: Hashable, Comparable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// An address as a driver hands it to a device. What it means depends on the device's ``DMASpace``: an I/O virtual
/// address behind an IOMMU, a guest-physical address without one.
@frozen public struct DMAAddress: Hashable, Comparable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// What the device does to memory: `read` for device-readable, `write` for device-writable buffers.
@frozen public enum DMAAccess: Hashable, Sendable {
  case read, write
}

/// What a mapping lets a device do.
@frozen public struct DMAPermissions: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// The device may read.
  public static var read: Self { Self(rawValue: 1) }
  /// The device may write.
  public static var write: Self { Self(rawValue: 2) }
  /// The device may do both.
  @inlinable public static var readWrite: Self { Self(rawValue: 3) }
  /// Whether they suffice for `access`.
  @inlinable public func allows(_ access: DMAAccess) -> Bool { rawValue & (access == .read ? 1 : 2) != 0 }
}

/// A refused access.
public struct DMAFault: Error, Hashable, Sendable {
  /// Why an access was refused.
  public enum Reason: Hashable, Sendable {
    /// Nothing is mapped there.
    case unmapped
    /// Something is, and not for this access.
    case permission
    /// There is memory, but not as a ring needs it: its offset in host memory is odd.
    case discontiguous
    /// The device may not reach memory at all yet.
    case busMasterDisabled
    /// The device was stopped.
    case stopped
    /// The chain needs more mappings at once than are kept.
    case exhausted
  }
  /// The first byte that failed, not the start of the buffer.
  public var address: DMAAddress
  /// What was to be done there.
  public var access: DMAAccess
  /// Why it was refused.
  public var reason: Reason
  /// A refusal of `access` at `address`.
  public init(address: DMAAddress, access: DMAAccess, reason: Reason) {
    self.address = address
    self.access = access
    self.reason = reason
  }
}

/// Why an address did not become memory.
public enum DMAInterruption: Error, Hashable, Sendable {
  /// Refused: the mapping is missing or forbids the access.
  case fault(DMAFault)
  /// Asked for: the waiting queue is woken when the answer arrives.
  case pending
}
