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
    let entry = try contextEntry(of: requester, rootTable: VTdRootTable(word: rootTable))
    guard entry.isPresent else { throw VTdRefusal(reason: .contextNotPresent, hidesFault: entry.hidesFaults) }
    var context = VTdContext(domain: entry.domain, target: .passThrough, hidesFaults: entry.hidesFaults)
    let invalid = VTdRefusal(reason: .contextInvalid, hidesFault: entry.hidesFaults)
    switch entry.translation {
    case .passThrough where options.hasPassThrough: return context
    case .tables: break
    case .tablesAndDeviceIOTLB where options.hasDeviceIOTLB: context.hasDeviceIOTLB = true
    default: throw invalid
    }
    guard let levels = entry.levels(options) else { throw invalid }
    context.target = .tables(entry.firstTable, levels: levels)
    return context
  }

  private func contextEntry(
    of requester: RequesterID, rootTable: VTdRootTable
  ) throws(VTdRefusal) -> VTdContextEntry {
    guard rootTable.isLegacy, let word = memory.tableWord(at: rootTable.entry(of: requester)) else {
      throw VTdRefusal(reason: .rootTableUnreachable)
    }
    let root = VTdRootEntry(word: word)
    guard root.isPresent else { throw VTdRefusal(reason: .rootNotPresent) }
    let at = root.contextEntry(of: requester)
    guard let low = memory.tableWord(at: at), let high = memory.tableWord(at: at &+ 8) else {
      throw VTdRefusal(reason: .contextTableUnreachable)
    }
    return VTdContextEntry(low: low, high: high)
  }

  /// What is around a device address.
  func run(_ context: VTdContext, around address: UInt64, for access: DMAAccess) throws(VTdRefusal) -> GuestRun {
    func refusal(_ reason: VTdFaultReason, isPermission: Bool = false) -> VTdRefusal {
      VTdRefusal(reason: reason, isPermission: isPermission, hidesFault: context.hidesFaults)
    }
    guard case .tables(let first, let levels) = context.target else { return .identity }
    let forbidden: VTdFaultReason = access == .write ? .writeForbidden : .readForbidden
    guard address >> UInt64(12 + 9 * levels) == 0 else { throw refusal(.beyondAddressWidth) }
    var table = first
    var permissions = DMAPermissions.readWrite
    for level in stride(from: levels, through: 1, by: -1) {
      let shift = UInt64(12 + 9 * (level - 1))
      guard let word = memory.tableWord(at: table &+ (address >> shift & 511) * 8) else {
        throw refusal(.pageTableUnreachable)
      }
      let entry = VTdPageEntry(word: word)
      // One bit clear anywhere on the way: not for that kind of access.
      guard !entry.permissions.isEmpty else { throw refusal(forbidden) }
      permissions.formIntersection(entry.permissions)
      guard permissions.allows(access) else { throw refusal(forbidden, isPermission: true) }
      let isLarge = level > 1 && entry.isLargePage
      if isLarge, level == 4 || !options.hasLargePages { throw refusal(.reservedInPageTable) }
      if level == 1 || isLarge {
        return GuestRun(page: 1 << shift, around: address, at: entry.address, permissions: permissions)
      }
      table = entry.address
    }
    throw refusal(.pageTableUnreachable)
  }
}
