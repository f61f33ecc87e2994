public import DMA

/// An address in the front-end's own virtual memory, as messages carry it.
public struct FrontendAddress: Hashable, Comparable, Sendable {
  public var rawValue: UInt64
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// Where a region is in both address spaces. Neither end of it may wrap.
extension RegionDescription {
  /// Bytes from the region's first one to a front-end address; nil if the region does not have it.
  package func offset(of address: FrontendAddress) -> UInt64? {
    let offset = address.rawValue &- frontendAddress
    return offset < size ? offset : nil
  }

  /// The front-end address of a guest address; nil if the region does not have it.
  package func frontendAddress(of address: GuestAddress) -> FrontendAddress? {
    let offset = address.rawValue &- guestAddress
    return offset < size ? FrontendAddress(frontendAddress &+ offset) : nil
  }

  /// Whether some address of the front-end's belongs to both regions.
  package func overlapsInFrontend(_ other: RegionDescription) -> Bool {
    frontendAddress <= other.frontendAddress + (other.size - 1)
      && other.frontendAddress <= frontendAddress + (size - 1)
  }
}
