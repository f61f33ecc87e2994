public import DriverDMA
public import IOMMUInterface

/// The driver of an AMD-Vi unit: its device table and page tables in the driver's memory, domains to map in, and the
/// endpoints of each.
///
/// One thread uses it, its domains included; not a thread of a device's queue, which the unit may wait for. No call
/// waits for the unit longer than its `BoundedWait`.
public final class AMDViDriver {
  /// Where the addresses of a requester lead that is in no domain.
  public enum Target {
    /// They are guest-physical.
    case passThrough
    /// Nowhere. Each access is an event in the unit's log unless they are hidden.
    case blocked(hidesFaults: Bool)
  }
  /// Device addresses that mean an interrupt, or are HyperTransport's own, even if something is mapped there.
  public static var reserved: [ClosedRange<UInt64>] { [0xFEE0_0000...0xFEEF_FFFF, 0xFD_0000_0000...0xFF_FFFF_FFFF] }

  /// Levels of page tables, at most.
  public let levels: Int
  let registers: any RegisterAccess
  let memory: TableMemory
  let wait: BoundedWait
  private let deviceTable: UInt64
  private let requesters: Int
  private(set) var domainIDs = DomainIDs(from: 1, to: 1 << 16)
  var commands: DescriptorRing
  let eventLog: UInt64
  var eventHead: UInt64 = 0
  var control: UInt64 = 0

  /// Takes the unit over from firmware or an earlier driver, with no endpoint attached; translation is off until
  /// ``enable()``.
  ///
  /// - Parameters:
  ///   - pages: where tables come from: the device table takes 8 KiB a bus, in one piece.
  ///   - buses: how many have requesters behind the unit, from 0 on: 1...256. Requesters past the table reach nothing.
  public init(
    _ registers: any RegisterAccess, pages: GuestPages, buses: Int = 256, wait: BoundedWait = BoundedWait()
  ) throws(UnitError) {
    precondition((1...256).contains(buses), "buses as documented")
    self.registers = registers
    self.wait = wait
    requesters = buses * 256
    let features = registers.read(at: AMDViRegister.features, width: 8)
    guard features >> 10 & 3 < 3 else { throw .missing(.addressWidth) }
    guard features & 1 << 6 != 0 else { throw .missing(.invalidateAll) }
    levels = 4 + Int(features >> 10 & 3)
    do throws(DMAError) {
      memory = try TableMemory(pages)
      deviceTable = try memory.allocate(UInt64(requesters) * AMDViDeviceEntry.byteCount)
      commands = try DescriptorRing(in: memory)
      eventLog = try memory.allocate()
    } catch {
      throw .memory(error)
    }
    for requester in 0..<UInt64(requesters) {
      memory.store(Self.blocked.low, at: deviceTable + requester * AMDViDeviceEntry.byteCount)
    }
    try setControl(0)
    // Its size: pages less one.
    let tablePages = UInt64(requesters) * AMDViDeviceEntry.byteCount / 4096
    registers.write(deviceTable | (tablePages - 1), at: AMDViRegister.deviceTable, width: 8)
    startEventLog()
    try startCommands()
    post(.invalidateAll)
    guard complete() else { throw .timeout(register: AMDViRegister.commandTail) }
  }

  /// The entry of a requester that is attached nowhere.
  private static var blocked: AMDViDeviceEntry { .blocked(hidesFaults: false) }

  /// Turns translation on: from now on an endpoint without a domain reaches nothing.
  public func enable() throws(UnitError) { try setControl(control | AMDViRegister.enabled) }

  /// Turns translation off: every address is guest-physical again.
  public func disable() throws(UnitError) { try setControl(control & ~AMDViRegister.enabled) }

  /// Whether the unit says that it translates.
  public var isEnabled: Bool { registers.read(at: AMDViRegister.control, width: 8) & AMDViRegister.enabled != 0 }

  func setControl(_ value: UInt64) throws(UnitError) {
    registers.write(value, at: AMDViRegister.control, width: 8)
    let done = wait.until { registers.read(at: AMDViRegister.control, width: 8) == value }
    guard done else { throw .timeout(register: AMDViRegister.control) }
    control = value
  }

  // MARK: Domains

  /// An empty domain.
  ///
  /// - Parameter levels: of its tables, 3 and up: 39 bits of device address, and 9 more each, 64 with 6. No more than
  ///   the unit has.
  public func makeDomain(levels: Int = 4) throws(UnitError) -> AMDViDomain {
    guard (3...self.levels).contains(levels) else { throw .missing(.addressWidth) }
    guard let number = domainIDs.take() else { throw .outOfDomains }
    do throws(DMAError) {
      return try AMDViDomain(self, number: number, levels: levels)
    } catch {
      domainIDs.give(back: number)
      throw .memory(error)
    }
  }

  /// Ends a domain without endpoints, and gives its memory back.
  public func remove(_ domain: AMDViDomain) throws(UnitError) {
    guard domain.unit === self, !domain.hasEnded else { throw .noDomain }
    guard !domainIDs.isUsed(domain.number) else { throw .domainInUse }
    if domain.end() { domainIDs.give(back: domain.number) }
  }

  // MARK: Requesters

  /// Attaches a requester to a domain, and takes it from where it was.
  ///
  /// - Parameter deviceIOTLB: whether the requester may cache translations itself until they are invalidated (ATS).
  public func attach(_ requester: RequesterID, to domain: AMDViDomain, deviceIOTLB: Bool = false) throws(UnitError) {
    guard domain.unit === self, !domain.hasEnded else { throw .noDomain }
    try setEntry(
      of: requester,
      to: .tables(at: domain.root, levels: domain.levels, domain: domain.number, deviceIOTLB: deviceIOTLB))
  }

  /// As ``attach(_:to:deviceIOTLB:)``, to what is no domain.
  public func attach(_ requester: RequesterID, to target: Target) throws(UnitError) {
    switch target {
    case .passThrough: try setEntry(of: requester, to: .passThrough)
    case .blocked(let hidesFaults): try setEntry(of: requester, to: .blocked(hidesFaults: hidesFaults))
    }
  }

  /// Takes a requester out of its domain: it reaches nothing any more when this returns.
  public func detach(_ requester: RequesterID) throws(UnitError) {
    try attach(requester, to: .blocked(hidesFaults: false))
  }

  private func setEntry(of requester: RequesterID, to entry: AMDViDeviceEntry) throws(UnitError) {
    guard Int(requester.rawValue) < requesters else { throw .missing(.requester) }
    let at = deviceTable + UInt64(requester.rawValue) * AMDViDeviceEntry.byteCount
    // Nothing while it is neither one thing nor the other.
    memory.store(Self.blocked.low, at: at)
    try forget(requester)
    memory.store(entry.high, at: at + 8)
    memory.store(entry.low, at: at)
    domainIDs.set(requester, entry.domain, keepsTranslations: entry.keepsTranslations)
    try forget(requester)
  }

  /// Invalidates what the unit and the requester cached of its entry and of the entry's domain.
  private func forget(_ requester: RequesterID) throws(UnitError) {
    post(.deviceTableEntry(of: requester))
    postDomain(domainIDs.domain(of: requester) ?? 0)
    if domainIDs.keepsTranslations(requester) {
      post(.deviceIOTLB(of: requester, from: 0, through: .max))
    }
    guard complete() else { throw .timeout(register: AMDViRegister.commandTail) }
  }
}

/// The registers that the driver uses, by their offsets, and bits of the control and status registers.
enum AMDViRegister {
  static let deviceTable = 0x0
  static let commandBuffer = 0x8
  static let eventLog = 0x10
  static let control = 0x18
  static let features = 0x30
  static let commandHead = 0x2000
  static let commandTail = 0x2008
  static let eventHead = 0x2010
  static let eventTail = 0x2018
  static let status = 0x2020

  static let enabled: UInt64 = 1
  static let logsEvents: UInt64 = 1 << 2
  static let eventInterrupt: UInt64 = 1 << 3
  static let takesCommands: UInt64 = 1 << 12
  static let eventOverflow: UInt64 = 1
  static let eventPending: UInt64 = 1 << 1
  static let commandsRun: UInt64 = 1 << 4

  /// A buffer of 2^8 entries of 16 bytes.
  static func buffer(at address: UInt64) -> UInt64 { address | 8 << 56 }
}
