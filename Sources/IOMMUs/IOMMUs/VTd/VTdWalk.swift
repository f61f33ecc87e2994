internal import DMA
internal import IOMMUInterface

/// What a context entry says of a requester, as the unit remembers it until the driver invalidates it.
struct VTdContext {
  /// Where the requester's addresses go.
  enum Target {
    case passThrough
    /// The guest-physical address of the first table, and how many levels there are: 3 or 4.
    case tables(UInt64, levels: Int)
  }
  var domain: UInt16
  var target: Target
  /// The requester keeps translations itself: its endpoint's cache is a device-TLB, which no IOTLB invalidation
  /// reaches.
  var hasDeviceIOTLB = false
  /// The driver suppressed reports of this requester's faults.
  var hidesFaults: Bool
}

/// Why a walk ended without memory.
struct VTdRefusal: Error {
  var reason: VTdFaultReason
  /// Whether a mapping is there that forbids the access.
  var isPermission = false
  var hidesFault = false
}

/// The walks of root, context and second-level tables in guest memory, legacy mode (chapter "DMA Remapping", 3.4 and
/// 3.6).
struct VTdWalk {
  let memory: GuestMemory
  let options: VTdOptions

  /// Follows the root and the context table.
  func context(of requester: RequesterID, rootTable: UInt64) throws(VTdRefusal) -> VTdContext {
    // Bits 11:10 choose another kind of table, which this unit does not offer.
    guard rootTable & 0xC00 == 0, let root = memory.tableWord(at: (rootTable & ~0xFFF) + UInt64(requester.bus) * 16)
    else {
      throw VTdRefusal(reason: .rootTableUnreachable)
    }
    guard root & 1 != 0 else { throw VTdRefusal(reason: .rootNotPresent) }
    let at = (root & ~0xFFF) &+ UInt64(requester.rawValue & 255) * 16
    guard let low = memory.tableWord(at: at), let high = memory.tableWord(at: at &+ 8) else {
      throw VTdRefusal(reason: .contextTableUnreachable)
    }
    guard low & 1 != 0 else { throw VTdRefusal(reason: .contextNotPresent, hidesFault: low & 2 != 0) }
    var context = VTdContext(
      domain: UInt16(truncatingIfNeeded: high >> 8), target: .passThrough, hidesFaults: low & 2 != 0)
    let kind = low >> 2 & 3
    if kind == 2, options.hasPassThrough { return context }
    guard kind == 0 || kind == 1 && options.hasDeviceIOTLB, let levels = levels(high & 7) else {
      throw VTdRefusal(reason: .contextInvalid, hidesFault: context.hidesFaults)
    }
    context.target = .tables(low & ~0xFFF, levels: levels)
    context.hasDeviceIOTLB = kind == 1
    return context
  }

  /// Levels of tables for an entry's address width.
  private func levels(_ width: UInt64) -> Int? {
    switch width {
    case 1: 3
    case 2 where options.addressWidth == 48: 4
    default: nil
    }
  }

  /// What is around a device address.
  func run(_ context: VTdContext, around address: UInt64, for access: DMAAccess) throws(VTdRefusal) -> GuestRun {
    guard case .tables(let first, let levels) = context.target else { return .identity }
    let forbidden: VTdFaultReason = access == .write ? .writeForbidden : .readForbidden
    guard address >> UInt64(12 + 9 * levels) == 0 else {
      throw VTdRefusal(reason: .beyondAddressWidth, hidesFault: context.hidesFaults)
    }
    var table = first
    var permissions = DMAPermissions.readWrite
    for level in stride(from: levels, through: 1, by: -1) {
      let shift = UInt64(12 + 9 * (level - 1))
      guard let entry = memory.tableWord(at: table &+ (address >> shift & 511) * 8) else {
        throw VTdRefusal(reason: .pageTableUnreachable, hidesFault: context.hidesFaults)
      }
      // Both bits clear: there is nothing. One clear anywhere on the way: not for that kind of access.
      let here = DMAPermissions(rawValue: UInt8(truncatingIfNeeded: entry & 3))
      guard !here.isEmpty else { throw VTdRefusal(reason: forbidden, hidesFault: context.hidesFaults) }
      permissions.formIntersection(here)
      guard permissions.allows(access) else {
        throw VTdRefusal(reason: forbidden, isPermission: true, hidesFault: context.hidesFaults)
      }
      let next = entry & 0x000F_FFFF_FFFF_F000
      let isLarge = level > 1 && entry & 1 << 7 != 0
      if isLarge, level == 4 || !options.hasLargePages {
        throw VTdRefusal(reason: .reservedInPageTable, hidesFault: context.hidesFaults)
      }
      if level == 1 || isLarge {
        return GuestRun(page: 1 << shift, around: address, at: next, permissions: permissions)
      }
      table = next
    }
    throw VTdRefusal(reason: .pageTableUnreachable)
  }
}
