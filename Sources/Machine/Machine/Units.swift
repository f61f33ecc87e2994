import DMA
import DriverDMA
public import IOMMUDrivers
import IOMMUInterface
public import IOMMUs
import Virtio
import VirtioDrivers
import VirtioIOMMU

/// A domain that a requester was attached to, and what of its addresses can be mapped.
package struct UnitDomain {
  var driver: any IOMMUDomain
  var granule: UInt64
  var aperture: ClosedRange<UInt64>
  var reserved: [ClosedRange<UInt64>] = []
}

/// A platform's IOMMU together with the driver that the guest has for it. One thread uses it, the one that runs the
/// guest.
protocol UnitWithDriver: AnyObject {
  /// What the buses put in front of their devices.
  var unit: any IOMMU { get }
  /// Sets a requester's state, and returns its domain if it has one.
  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain?
}

extension MachineError {
  static func unit(_ error: any Error) -> MachineError { .unit("\(error)") }
}

/// The driver of a unit that has an entry for each requester.
protocol RequesterDriver: AnyObject {
  func enable() throws(UnitError)
  /// Lets a requester's addresses pass as they are.
  func setPassThrough(_ requester: RequesterID) throws(UnitError)
  func detach(_ requester: RequesterID) throws(UnitError)
  /// Attaches a requester to a domain of its own.
  func attachAlone(_ requester: RequesterID) throws(UnitError) -> UnitDomain
}

extension VTdDriver: RequesterDriver {
  func setPassThrough(_ requester: RequesterID) throws(UnitError) { try attach(requester, to: .passThrough) }
  func attachAlone(_ requester: RequesterID) throws(UnitError) -> UnitDomain {
    let domain = try makeDomain()
    try attach(requester, to: domain)
    return UnitDomain(driver: domain, granule: 4096, aperture: domain.aperture, reserved: Self.reserved)
  }
}

extension AMDViDriver: RequesterDriver {
  func setPassThrough(_ requester: RequesterID) throws(UnitError) { try attach(requester, to: .passThrough) }
  func attachAlone(_ requester: RequesterID) throws(UnitError) -> UnitDomain {
    let domain = try makeDomain()
    try attach(requester, to: domain)
    return UnitDomain(driver: domain, granule: 4096, aperture: domain.aperture, reserved: Self.reserved)
  }
}

extension VTdUnit: RegisterAccess {}
extension AMDViUnit: RegisterAccess {}

/// VT-d or AMD-Vi, and its driver.
final class RequesterUnit: UnitWithDriver {
  let unit: any IOMMU
  private let makeDriver: () throws(UnitError) -> any RequesterDriver
  private var driver: (any RequesterDriver)?

  private init(_ unit: any IOMMU, _ makeDriver: @escaping () throws(UnitError) -> any RequesterDriver) {
    self.unit = unit
    self.makeDriver = makeDriver
  }

  static func vtd(_ memory: GuestMemory, _ pages: GuestPages, _ interrupts: InterruptController) -> RequesterUnit {
    let unit = VTdUnit(memory) { interrupts.deliver($0, from: RequesterID(bus: 0, device: 0, function: 0)) }
    return RequesterUnit(unit) { () throws(UnitError) in try VTdDriver(unit, pages: pages) }
  }

  static func amdvi(_ memory: GuestMemory, _ pages: GuestPages, _ interrupts: InterruptController) -> RequesterUnit {
    let unit = AMDViUnit(memory) { interrupts.deliver($0, from: RequesterID(bus: 0, device: 0, function: 0)) }
    // One bus is all that a machine here has.
    return RequesterUnit(unit) { () throws(UnitError) in try AMDViDriver(unit, pages: pages, buses: 1) }
  }

  private func takeOver() throws(UnitError) -> any RequesterDriver {
    if let driver { return driver }
    let new = try makeDriver()
    try new.enable()
    driver = new
    return new
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    do throws(UnitError) {
      let driver = try takeOver()
      switch state {
      case .none: return nil
      case .bypass: try driver.setPassThrough(requester)
      case .unattached: try driver.detach(requester)
      case .attached: return try driver.attachAlone(requester)
      }
      return nil
    } catch {
      throw .unit(error)
    }
  }
}

/// A TCE window and its driver: one domain for everything behind the bridge.
final class TCEWithDriver: UnitWithDriver, TCEHypercalls {
  private let table = TCETable(start: DMAAddress(0x8000_0000), pages: 4096)
  private var driver: TCEDriver?
  var unit: any IOMMU { table }

  func putTCE(_ address: DMAAddress, _ entry: UInt64) -> Bool { (try? table.put(address, entry)) != nil }
  func putTCEs(_ address: DMAAddress, _ entries: [UInt64]) -> Bool { (try? table.put(address, entries)) != nil }
  func stuffTCE(_ address: DMAAddress, _ entry: UInt64, count: Int) -> Bool {
    (try? table.stuff(address, entry, count: count)) != nil
  }

  private func takeOver() throws(DMAError) -> TCEDriver {
    if let driver { return driver }
    let new = try TCEDriver(self, start: table.start, pages: 4096)
    driver = new
    return new
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    guard state == .attached else { return nil }
    do throws(DMAError) {
      let driver = try takeOver()
      return UnitDomain(driver: driver, granule: driver.pageSize, aperture: driver.aperture)
    } catch {
      throw .unit(error)
    }
  }
}

/// A sun4u IOMMU and its driver: one domain for everything behind the bridge, or translation off.
final class Sun4uWithDriver: UnitWithDriver, RegisterAccess {
  private let iommu: Sun4uIOMMU
  private let pages: GuestPages
  private var driver: Sun4uDriver?
  var unit: any IOMMU { iommu }

  init(_ memory: GuestMemory, _ pages: GuestPages) {
    iommu = Sun4uIOMMU(memory)
    self.pages = pages
  }

  func read(at offset: Int, width: Int) -> UInt64 { Sun4uIOMMU.Register(rawValue: offset).map(iommu.read) ?? 0 }
  private func takeOver() throws(UnitError) -> Sun4uDriver {
    if let driver { return driver }
    let new = try Sun4uDriver(self, pages: pages)
    driver = new
    return new
  }

  func write(_ value: UInt64, at offset: Int, width: Int) {
    if let register = Sun4uIOMMU.Register(rawValue: offset) { iommu.write(value, to: register) }
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    do throws(UnitError) {
      let driver = try takeOver()
      guard state != .bypass else {
        driver.disable()
        return nil
      }
      try driver.enable()
      guard state == .attached else { return nil }
      return UnitDomain(driver: driver, granule: driver.pageSize, aperture: driver.aperture)
    } catch {
      throw .unit(error)
    }
  }
}

/// virtio-iommu, whose driver comes when the buses are numbered: it is a device on one of them.
final class VirtioIOMMUWithDriver: UnitWithDriver {
  let device: IOMMUDevice
  private var driver: VirtioIOMMUDriver?
  private var nextDomain: UInt32 = 1
  var unit: any IOMMU { device }

  init(_ memory: GuestMemory) throws(MachineError) {
    // Like the other units: a requester for which nothing is set up reaches nothing.
    var options = IOMMUOptions()
    options.bypass = .configured(false)
    device = try rethrowing(IOMMUDevice(memory, options: options), saying: MachineError.host)
  }

  func start(
    _ transport: any DriverTransport, on platform: DriverPlatform, _ options: DriverOptions
  ) throws(MachineError) {
    driver = try rethrowing(VirtioIOMMUDriver(transport, on: platform, options: options), as: MachineError.unit)
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    guard let driver else { throw .unit("it was not started") }
    guard state == .attached || state == .bypass else { return nil }
    let domain = VirtioIOMMUDomain(driver, nextDomain, bypass: state == .bypass)
    nextDomain += 1
    try rethrowing(domain.attach(requester), as: MachineError.unit)
    guard state == .attached else { return nil }
    return UnitDomain(driver: domain, granule: 4096, aperture: 0x1000 ... .max, reserved: [0xFEE0_0000...0xFEEF_FFFF])
  }

  func stop() { driver?.stop() }
}
