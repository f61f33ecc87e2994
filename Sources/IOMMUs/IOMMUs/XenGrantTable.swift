public import DMA
public import IOMMUInterface
import Synchronization

/// A Xen guest's grants as an IOMMU: an address with bit 63 is a reference to a granted page, and any other is refused
/// (R180).
///
/// References are granted and ended by the guest's processors, never by a queue's thread. The back-end's domain may
/// also map a grant for longer than an access: as long as it does, the grant cannot be ended.
public final class XenGrantTable: IOMMU {
  /// A granted page.
  fileprivate struct Grant {
    var page: UInt64
    var isReadOnly: Bool
    /// Times that the other domain has mapped it.
    var mapped = 0
  }
  fileprivate struct State {
    var grants: [Grant?]
    /// Where to look for free references.
    var next: Int
  }
  /// The first references are Xen's own.
  private static let reserved = 8
  private let state: Mutex<State>
  private let endpoints = BridgeEndpoints()

  /// What makes an address one of a grant.
  public static var marker: UInt64 { 1 << 63 }

  /// - Parameter capacity: references, at most 2^32, of which the first 8 are reserved.
  public init(capacity: Int = 8192) {
    precondition(capacity > Self.reserved && capacity <= 1 << 32, "references as documented")
    state = Mutex(State(grants: [Grant?](repeating: nil, count: capacity), next: Self.reserved))
  }

  /// Accesses refused, of all endpoints.
  public var faults: UInt64 { endpoints.faults }
  /// Pages that are granted now.
  public var count: Int { state.withLock { $0.grants.count { $0 != nil } } }

  public func adopt(_ endpoint: EndpointSpace) { endpoints.adopt(endpoint, by: self) }

  public func release(_ endpoint: EndpointSpace) { endpoints.release(endpoint) }

  // MARK: The guest's side

  /// Grants `count` pages of 4 KiB from page `first` of guest memory on. The first of as many consecutive references;
  /// nil when no such are free.
  public func grantAccess(to first: UInt64, count: UInt64, readOnly: Bool) -> UInt32? {
    guard count > 0, first < 1 << 52, count <= 1 << 52 - first else { return nil }
    return state.withLock { state in
      guard count <= UInt64(state.grants.count - Self.reserved), let at = state.run(of: Int(count), from: Self.reserved)
      else { return nil }
      for i in 0..<Int(count) { state.grants[at + i] = Grant(page: first + UInt64(i), isReadOnly: readOnly) }
      state.next = at + Int(count)
      return UInt32(at)
    }
  }

  /// Ends grants, and returns when no access to their pages is under way. False: the other domain has one of them
  /// mapped, or not all of them are granted; they all stay.
  public func endAccess(_ first: UInt32, count: UInt64) -> Bool {
    let ended = state.withLock { state in
      guard count > 0, count <= UInt64(state.grants.count), UInt64(first) <= UInt64(state.grants.count) - count else {
        return false
      }
      let range = Int(first)..<Int(first) + Int(count)
      guard range.allSatisfy({ state.grants[$0].map { $0.mapped == 0 } ?? false }) else { return false }
      for reference in range { state.grants[reference] = nil }
      return true
    }
    guard ended else { return false }
    let start = Self.marker | UInt64(first) << 12
    endpoints.invalidate(from: start, through: start + (count << 12 - 1))
    return true
  }

  // MARK: The other domain's side

  /// Maps a granted page until ``unmap(_:)``: where it is, or nil if there is no such grant, or it is read-only and
  /// that is not enough.
  public func map(_ reference: UInt32, readOnly: Bool) -> GuestAddress? {
    state.withLock { state in
      guard Int(reference) < state.grants.count, let grant = state.grants[Int(reference)], readOnly || !grant.isReadOnly
      else { return nil }
      state.grants[Int(reference)]?.mapped += 1
      return GuestAddress(grant.page << 12)
    }
  }

  /// Ends one ``map(_:readOnly:)``; without one, nothing happens.
  public func unmap(_ reference: UInt32) {
    state.withLock { state in
      guard Int(reference) < state.grants.count, let grant = state.grants[Int(reference)], grant.mapped > 0 else {
        return
      }
      state.grants[Int(reference)]?.mapped -= 1
    }
  }
}

extension XenGrantTable.State {
  /// Where so many references are free, looked for from the last ones on, so that a number comes again late.
  fileprivate func run(of count: Int, from first: Int) -> Int? {
    for (start, end) in [(next, grants.count), (first, min(next + count - 1, grants.count))] {
      var free = 0
      var at = start
      while at < end {
        free = grants[at] == nil ? free + 1 : 0
        at += 1
        if free == count { return at - count }
      }
    }
    return nil
  }
}

extension XenGrantTable: AddressTranslation {
  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    let reference = (address.rawValue & ~Self.marker) >> 12
    let grant = state.withLock { state in
      address.rawValue & Self.marker != 0 && reference < UInt64(state.grants.count) ? state.grants[Int(reference)] : nil
    }
    guard let grant else { throw DMAFault(address: address, access: access, reason: .unmapped) }
    let permissions: DMAPermissions = grant.isReadOnly ? .read : .readWrite
    guard permissions.allows(access) else { throw DMAFault(address: address, access: access, reason: .permission) }
    return GuestRun(page: 4096, around: address.rawValue, at: grant.page << 12, permissions: permissions)
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) { endpoints.countFault() }
}
