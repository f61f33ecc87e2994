public import DriverDMA

/// How a driver reaches the registers of its unit: a mapping of them on bare metal, a call where the unit is in the
/// same process.
public protocol RegisterAccess: AnyObject {
  /// Reads 4 or 8 bytes at a multiple of 4, counted from the start of the registers.
  func read(at offset: Int, width: Int) -> UInt64
  /// Writes 4 or 8 bytes at a multiple of 4.
  func write(_ value: UInt64, at offset: Int, width: Int)
}

/// Why a driver could not take a unit over, or have it do something.
public enum UnitError: Error, Hashable, Sendable {
  /// A feature that a driver needs and that some units lack.
  public enum Capability: Hashable, Sendable {
    /// Tables of a number of levels that both know.
    case addressWidth
    /// Walks that see what processors have in their caches.
    case coherentWalks
    /// Invalidation by a queue in memory.
    case queuedInvalidation
    /// Writes that are seen without a command for it.
    case unbufferedWrites
    /// Entries that let a requester pass untranslated.
    case passThrough
    /// Requesters with translation caches of their own.
    case deviceIOTLB
    /// One command that invalidates everything.
    case invalidateAll
    /// A place for the requester in the unit's table.
    case requester
  }
  /// The unit does not have it.
  case missing(Capability)
  /// The unit did not carry out the command of the register at this offset in time: do not rely on it.
  case timeout(register: Int)
  /// There is no memory for its tables.
  case memory(DMAError)
  /// It has no number left for another domain.
  case outOfDomains
  /// The domain is another unit's, or has ended.
  case noDomain
  /// A requester is still attached to the domain.
  case domainInUse
}
