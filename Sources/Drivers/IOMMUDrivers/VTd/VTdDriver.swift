internal import DMA
public import DriverDMA
public import IOMMUInterface

/// The driver of an Intel VT-d unit in legacy mode: its tables in the driver's memory, domains to map in, and the
/// endpoints of each.
///
/// One thread uses it, its domains included; not a thread of a device's queue, which the unit may wait for. No call
/// waits for the unit longer than its `BoundedWait`.
public final class VTdDriver {
  /// Where the addresses of a requester lead.
  public enum Target {
    /// Where the domain's mappings say.
    case domain(VTdDomain)
    /// Nowhere else: they are guest-physical.
    case passThrough
    /// Nowhere. Each access is a fault, in the unit's records unless they are hidden.
    case blocked(hidesFaults: Bool)
  }
  /// Device addresses that mean an interrupt when they are written, even if something is mapped there.
  public static var reserved: [ClosedRange<UInt64>] { [0xFEE0_0000...0xFEEF_FFFF] }

  /// What the unit can do.
  public let capabilities: VTdCapabilities
  let registers: any RegisterAccess
  let memory: TableMemory
  let wait: BoundedWait
  private let root: UInt64
  private var contextTables: [UInt8: UInt64] = [:]
  private(set) var domainIDs: DomainIDs
  var queue: DescriptorRing

  /// A unit in caching mode reserves domain 0 (it tags what is not present), so no endpoint gets it; 1 is for all
  /// endpoints in pass-through.
  private static var passing: UInt16 { 1 }

  /// Takes the unit over from firmware or an earlier driver, with no endpoint attached; translation is off until
  /// ``enable()``.
  ///
  /// - Parameter pages: where tables come from.
  public init(_ registers: any RegisterAccess, pages: GuestPages, wait: BoundedWait = BoundedWait()) throws(UnitError) {
    self.registers = registers
    self.wait = wait
    capabilities = VTdCapabilities(
      capability: registers.read(at: VTdRegister.capability, width: 8),
      extendedCapability: registers.read(at: VTdRegister.extendedCapability, width: 8))
    domainIDs = DomainIDs(from: 2, to: capabilities.domains)
    guard !capabilities.levels.isEmpty else { throw .missing(.addressWidth) }
    guard capabilities.hasCoherentWalks else { throw .missing(.coherentWalks) }
    guard capabilities.hasQueuedInvalidation else { throw .missing(.queuedInvalidation) }
    guard !capabilities.buffersWrites else { throw .missing(.unbufferedWrites) }
    do throws(DMAError) {
      memory = try TableMemory(pages)
      root = try memory.allocate()
      queue = try DescriptorRing(in: memory)
    } catch {
      throw .memory(error)
    }
    try command(VTdRegister.translation, on: false)
    try command(VTdRegister.queuedInvalidation, on: false)
    registers.write(root, at: VTdRegister.rootTable, width: 8)
    try command(VTdRegister.rootTablePointer, on: true)
    try startQueue()
    post(.everyContext)
    post(.everyTranslation(drains: capabilities.drains))
    guard complete() else { throw .timeout(register: VTdRegister.queueTail) }
  }

  /// Turns translation on: from now on an endpoint without a domain reaches nothing.
  public func enable() throws(UnitError) { try command(VTdRegister.translation, on: true) }

  /// Turns translation off: every address is guest-physical again.
  public func disable() throws(UnitError) { try command(VTdRegister.translation, on: false) }

  /// Whether the unit says that it translates.
  public var isEnabled: Bool { registers.read(at: VTdRegister.globalStatus, width: 4) & VTdRegister.translation != 0 }

  /// Has the unit do one thing, and waits until its status says so. What else is on stays on.
  func command(_ bit: UInt64, on: Bool) throws(UnitError) {
    // Of the status these bits are states; of the others a write would repeat what once was commanded.
    let states =
      registers.read(at: VTdRegister.globalStatus, width: 4)
      & (VTdRegister.translation | VTdRegister.queuedInvalidation)
    registers.write(on ? states | bit : states & ~bit, at: VTdRegister.globalCommand, width: 4)
    let done = wait.until { (registers.read(at: VTdRegister.globalStatus, width: 4) & bit != 0) == on }
    guard done else { throw .timeout(register: VTdRegister.globalCommand) }
  }

  // MARK: Domains

  /// An empty domain.
  ///
  /// - Parameter addressWidth: bits of its device addresses: 39, or 48; nil for as many as the unit has.
  public func makeDomain(addressWidth: Int? = nil) throws(UnitError) -> VTdDomain {
    guard let levels = capabilities.levels.last(where: { addressWidth == nil || addressWidth == 12 + 9 * $0 }) else {
      throw .missing(.addressWidth)
    }
    guard let number = domainIDs.take() else { throw .outOfDomains }
    do throws(DMAError) {
      return try VTdDomain(self, number: number, levels: levels)
    } catch {
      domainIDs.give(back: number)
      throw .memory(error)
    }
  }

  /// Ends a domain without endpoints, and gives its memory back.
  public func remove(_ domain: VTdDomain) throws(UnitError) {
    guard domain.unit === self, !domain.hasEnded else { throw .noDomain }
    guard !domainIDs.isUsed(domain.number) else { throw .domainInUse }
    if domain.end() { domainIDs.give(back: domain.number) }
  }

  // MARK: Requesters

  /// Attaches a requester to a domain, and takes it from where it was.
  ///
  /// - Parameter deviceIOTLB: whether the requester may cache translations itself until they are invalidated (ATS).
  public func attach(_ requester: RequesterID, to domain: VTdDomain, deviceIOTLB: Bool = false) throws(UnitError) {
    guard domain.unit === self, !domain.hasEnded else { throw .noDomain }
    guard !deviceIOTLB || capabilities.hasDeviceIOTLB else { throw .missing(.deviceIOTLB) }
    try setContext(
      of: requester,
      to: .tables(at: domain.root, levels: domain.levels, domain: domain.number, deviceIOTLB: deviceIOTLB))
  }

  /// As ``attach(_:to:deviceIOTLB:)``, or to what is no domain.
  public func attach(_ requester: RequesterID, to target: Target) throws(UnitError) {
    switch target {
    case .domain(let domain): try attach(requester, to: domain)
    case .passThrough:
      guard capabilities.hasPassThrough, let levels = capabilities.levels.last else { throw .missing(.passThrough) }
      try setContext(of: requester, to: .passThrough(domain: Self.passing, levels: levels))
    case .blocked(let hidesFaults): try setContext(of: requester, to: .blocked(hidesFaults: hidesFaults))
    }
  }

  /// Takes a requester out of its domain: it reaches nothing any more when this returns.
  public func detach(_ requester: RequesterID) throws(UnitError) {
    try attach(requester, to: .blocked(hidesFaults: false))
  }

  private func setContext(of requester: RequesterID, to entry: VTdContextEntry) throws(UnitError) {
    let at = try contextTable(of: requester) + UInt64(requester.rawValue & 255) * VTdContextEntry.byteCount
    // Not present while it is neither one thing nor the other.
    memory.store(0, at: at)
    try forget(requester, in: domainIDs.domain(of: requester))
    memory.store(entry.high, at: at + 8)
    memory.store(entry.low, at: at)
    domainIDs.set(requester, entry.domain, keepsTranslations: entry.keepsTranslations)
    if remembersNothing { try forget(requester, in: nil) }
  }

  /// Invalidates what the unit and the requester cached of its context entry and of the entry's domain.
  private func forget(_ requester: RequesterID, in domain: UInt16?) throws(UnitError) {
    post(.context(of: requester, domain: domain ?? 0))
    if let domain { postDomain(domain) }
    if domain != nil, domainIDs.keepsTranslations(requester) {
      post(.deviceIOTLB(of: requester, first: 0, last: .max))
    }
    guard complete() else { throw .timeout(register: VTdRegister.queueTail) }
  }

  private func contextTable(of requester: RequesterID) throws(UnitError) -> UInt64 {
    if let table = contextTables[requester.bus] { return table }
    let table = try rethrowing(memory.allocate(), as: UnitError.memory)
    contextTables[requester.bus] = table
    memory.store(VTdRootEntry.table(at: table), at: root + UInt64(requester.bus) * 16)
    return table
  }
}

/// The registers that the driver uses, by their offsets, and bits of the global command and status registers.
enum VTdRegister {
  static let capability = 0x08
  static let extendedCapability = 0x10
  static let globalCommand = 0x18
  static let globalStatus = 0x1C
  static let rootTable = 0x20
  static let faultStatus = 0x34
  static let faultEventControl = 0x38
  static let faultEventData = 0x3C
  static let faultEventAddress = 0x40
  static let queueTail = 0x88
  static let queueAddress = 0x90

  static let translation: UInt64 = 1 << 31
  static let rootTablePointer: UInt64 = 1 << 30
  static let queuedInvalidation: UInt64 = 1 << 26
}
