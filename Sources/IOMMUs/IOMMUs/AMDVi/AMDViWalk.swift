internal import DMA
internal import IOMMUInterface

/// What a device table entry says of a requester, as the unit remembers it until the driver invalidates it.
struct AMDViContext {
  /// Where the requester's addresses go.
  enum Target {
    case passThrough
    /// The guest-physical address of the first table, and how many levels there are: 1...6.
    case tables(UInt64, levels: Int)
  }
  var domain: UInt16 = 0
  var target = Target.passThrough
  var permissions = DMAPermissions.readWrite
  /// The requester keeps translations itself: its endpoint's cache is a device-TLB.
  var hasDeviceIOTLB = false
  /// The driver suppressed reports of this requester's faults.
  var hidesFaults = false
}

/// Why a walk ended without memory.
struct AMDViRefusal: Error {
  var event: AMDViEvent
  var domain: UInt16 = 0
  var hidesFault = false
}

/// The walks of the device table and of page tables in guest memory (chapters "Device Table Entry" and "I/O Page
/// Tables").
struct AMDViWalk {
  let memory: GuestMemory
  /// Levels of page tables at most.
  let levels: Int

  /// Reads a requester's entry of the device table that a register describes.
  func context(of requester: RequesterID, deviceTable: UInt64) throws(AMDViRefusal) -> AMDViContext {
    guard let at = AMDViDeviceTable(word: deviceTable).entry(of: requester) else {
      throw AMDViRefusal(event: .illegalEntry)
    }
    guard let low = memory.tableWord(at: at), let high = memory.tableWord(at: at + 8) else {
      throw AMDViRefusal(event: .deviceTableUnreachable)
    }
    let entry = AMDViDeviceEntry(low: low, high: high)
    // Not valid: nothing is said against this requester.
    guard entry.isValid else { return AMDViContext() }
    guard entry.saysTranslation, entry.levels <= levels else {
      throw AMDViRefusal(event: .illegalEntry, domain: entry.domain, hidesFault: entry.hidesFaults)
    }
    return AMDViContext(
      domain: entry.domain,
      target: entry.levels > 0 ? .tables(entry.firstTable, levels: entry.levels) : .passThrough,
      permissions: entry.permissions, hasDeviceIOTLB: entry.hasDeviceIOTLB, hidesFaults: entry.hidesFaults)
  }

  /// What is around a device address.
  func run(_ context: AMDViContext, around address: UInt64, for access: DMAAccess) throws(AMDViRefusal) -> GuestRun {
    func refusal(_ event: AMDViEvent) -> AMDViRefusal {
      AMDViRefusal(event: event, domain: context.domain, hidesFault: context.hidesFaults)
    }
    let absent = AMDViEvent.pageFault(isPresent: false, isForbidden: false, isReserved: false)
    let forbidden = AMDViEvent.pageFault(isPresent: true, isForbidden: true, isReserved: false)
    let reserved = AMDViEvent.pageFault(isPresent: true, isForbidden: false, isReserved: true)
    var permissions = context.permissions
    guard permissions.allows(access) else { throw refusal(forbidden) }
    guard case .tables(var table, var level) = context.target else {
      var run = GuestRun.identity
      run.permissions = permissions
      return run
    }
    guard level == 6 || address >> UInt64(12 + 9 * level) == 0 else { throw refusal(absent) }
    while true {
      let shift = UInt64(12 + 9 * (level - 1))
      guard let word = memory.tableWord(at: table + (address >> shift & 511) * 8) else {
        throw refusal(.pageTableUnreachable)
      }
      let entry = AMDViPageEntry(word: word)
      guard entry.isPresent else { throw refusal(absent) }
      permissions.formIntersection(entry.permissions)
      guard permissions.allows(access) else { throw refusal(forbidden) }
      table = entry.address
      switch entry.target {
      case .page: return GuestRun(page: 1 << shift, around: address, at: table, permissions: permissions)
      case .largePage(let order):
        // More than one page of this level, less than one of the next.
        guard order > 9 * (level - 1), order < 9 * level else { throw refusal(reserved) }
        return GuestRun(page: 4096 << UInt64(order), around: address, at: table, permissions: permissions)
      case .table(let next):
        guard next < level else { throw refusal(reserved) }
        // Levels may be left out where their part of the address is zero.
        let left = UInt64(12 + 9 * next)
        guard address >> left & (1 << (shift - left) - 1) == 0 else { throw refusal(absent) }
        level = next
      }
    }
  }
}
