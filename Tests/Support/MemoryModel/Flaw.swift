import DMA
import IOMMUInterface
import Synchronization

/// A defect to plant, for the model to find.
public enum Flaw: String, CaseIterable, Sendable {
  /// What was translated once is remembered, invalidations or not.
  case ignoresInvalidation
  /// Where nothing is mapped an address is taken for a physical one.
  case takesPhysicalForTranslated
  /// A mapping goes on for one byte after its end.
  case goesPastThePage
  /// A mapping's permissions are not checked.
  case losesPermissions
  /// Every fault is reported twice.
  case reportsTwice
  /// No fault is reported.
  case reportsNever
  /// A fault names the start of the page.
  case namesThePage
  /// A function that should be translated is not.
  case bypassesTheUnit
  /// The device gives a wrong length back.
  case givesAWrongLength

  /// Those that a unit has, and not the function.
  var isOfTheUnit: Bool { self != .bypassesTheUnit && self != .givesAWrongLength }
}

/// A unit with a flaw in what it says to devices; its driver sees none.
final class FlawedUnit: IOMMU, AddressTranslation {
  private let inner: any IOMMU & AddressTranslation
  private let flaw: Flaw
  private let known = Mutex<[RequesterID: [UInt64: GuestRun]]>([:])

  init(_ inner: any IOMMU & AddressTranslation, _ flaw: Flaw) {
    self.inner = inner
    self.flaw = flaw
  }

  func adopt(_ endpoint: EndpointSpace) {
    inner.adopt(endpoint)
    endpoint.setRoute(.translated(self))
  }
  func release(_ endpoint: EndpointSpace) { inner.release(endpoint) }

  func lookUp(_ address: DMAAddress, for access: DMAAccess, by requester: RequesterID) throws(DMAFault) -> GuestRun {
    if flaw == .ignoresInvalidation, let run = known.withLock({ $0[requester]?[address.rawValue >> 12] }),
      run.permissions.allows(access)
    {
      return run
    }
    do throws(DMAFault) {
      var run = try inner.lookUp(address, for: access, by: requester)
      if flaw == .goesPastThePage, run.last.rawValue != .max { run.last.rawValue += 1 }
      if flaw == .ignoresInvalidation { known.withLock { $0[requester, default: [:]][address.rawValue >> 12] = run } }
      return run
    } catch {
      switch (flaw, error.reason) {
      case (.takesPhysicalForTranslated, .unmapped):
        let page = address.rawValue & ~4095
        return GuestRun(
          first: DMAAddress(page), last: DMAAddress(page | 4095), guest: GuestAddress(page), permissions: .readWrite)
      case (.losesPermissions, .permission):
        var run = try inner.lookUp(address, for: access == .read ? .write : .read, by: requester)
        run.permissions = .readWrite
        return run
      case (.namesThePage, _):
        throw DMAFault(address: DMAAddress(address.rawValue & ~4095), access: access, reason: error.reason)
      default: throw error
      }
    }
  }

  func report(_ fault: DMAFault, by requester: RequesterID) {
    if flaw == .reportsNever { return }
    inner.report(fault, by: requester)
    if flaw == .reportsTwice { inner.report(fault, by: requester) }
  }
}
