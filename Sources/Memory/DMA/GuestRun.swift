/// A run of guest-physical memory behind a run of device addresses, with what may be done to it.
public struct GuestRun: Hashable, Sendable {
  /// The first device address.
  public var first: DMAAddress
  /// The last device address: at or after ``first``.
  public var last: DMAAddress
  /// The guest-physical address behind ``first``.
  public var guest: GuestAddress
  /// What a device may do there.
  public var permissions: DMAPermissions

  public init(first: DMAAddress, last: DMAAddress, guest: GuestAddress, permissions: DMAPermissions) {
    self.first = first
    self.last = last
    self.guest = guest
    self.permissions = permissions
  }
}
