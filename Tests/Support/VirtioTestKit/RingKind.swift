public import Virtio

/// A ring format, how a driver lays its chains out in it, and which driver does.
public struct RingKind: Hashable, CustomStringConvertible, Sendable {
  public var packed: Bool
  public var indirect: Bool
  public var driver: RingCase.Driver

  public init(packed: Bool = false, indirect: Bool = false, driver: RingCase.Driver = .literal) {
    self.packed = packed
    self.indirect = indirect
    self.driver = driver
  }

  /// Both formats with and without indirect tables, by the literal driver.
  public static let all = [Self(), Self(indirect: true), Self(packed: true), Self(packed: true, indirect: true)]
  /// The same by both drivers.
  public static let allDrivers = all + all.map { Self(packed: $0.packed, indirect: $0.indirect, driver: .driverQueue) }

  public var description: String {
    "\(packed ? "packed" : "split") \(indirect ? "indirect" : "direct")\(driver == .literal ? "" : " driver queue")"
  }

  /// What a driver of this kind accepts besides `base`.
  public func features(_ base: Features) -> Features {
    base.union(packed ? .ringPacked : []).union(indirect ? .indirectDescriptors : [])
  }
}
