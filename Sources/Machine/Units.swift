import DMA
import IOMMUDrivers
import IOMMUs
import Virtio
import VirtioDevices
import VirtioDrivers

/// A domain that a requester was attached to, and what of its addresses can be mapped.
struct UnitDomain {
  var driver: any IOMMUDriver
  var granule: UInt64
  var aperture: ClosedRange<UInt64>
  var reserved: [ClosedRange<UInt64>] = []
}

/// A platform's IOMMU together with the driver that the guest has for it. One thread uses it, the one that runs the guest.
protocol UnitWithDriver: AnyObject {
  /// What the buses put in front of their devices.
  var unit: any IOMMU { get }
  /// Sets a requester's state, and returns its domain if it has one.
  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain?
}

extension MachineError {
  static func unit(_ error: any Error) -> MachineError { .unit("\(error)") }
}

/// VT-d and its driver.
final class VTdWithDriver: UnitWithDriver, RegisterAccess {
  private let vtd: VTdUnit
  private let pages: GuestPages
  private var driver: VTdDriver?
  var unit: any IOMMU { vtd }

  init(_ memory: GuestMemory, _ pages: GuestPages, interrupts: InterruptController) {
    self.pages = pages
    vtd = VTdUnit(memory) { interrupts.deliver($0, from: RequesterID(bus: 0, device: 0, function: 0)) }
  }

  func read(at offset: Int, width: Int) -> UInt64 { vtd.read(at: offset, width: width) }
  func write(_ value: UInt64, at offset: Int, width: Int) { vtd.write(value, at: offset, width: width) }

  private func takeOver() throws(UnitError) -> VTdDriver {
    if let driver { return driver }
    let new = try VTdDriver(self, pages: pages)
    try new.enable()
    driver = new
    return new
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    do throws(UnitError) {
      let driver = try takeOver()
      switch state {
      case .none: return nil
      case .bypass:
        try driver.attach(requester, to: .passThrough)
        return nil
      case .unattached:
        try driver.detach(requester)
        return nil
      case .attached:
        let domain = try driver.makeDomain()
        try driver.attach(requester, to: domain)
        return UnitDomain(driver: domain, granule: 4096, aperture: domain.aperture, reserved: VTdDriver.reserved)
      }
    } catch {
      throw .unit(error)
    }
  }
}

/// AMD-Vi and its driver.
final class AMDViWithDriver: UnitWithDriver, RegisterAccess {
  private let amdvi: AMDViUnit
  private let pages: GuestPages
  private var driver: AMDViDriver?
  var unit: any IOMMU { amdvi }

  init(_ memory: GuestMemory, _ pages: GuestPages, interrupts: InterruptController) {
    self.pages = pages
    amdvi = AMDViUnit(memory) { interrupts.deliver($0, from: RequesterID(bus: 0, device: 0, function: 0)) }
  }

  func read(at offset: Int, width: Int) -> UInt64 { amdvi.read(at: offset, width: width) }
  func write(_ value: UInt64, at offset: Int, width: Int) { amdvi.write(value, at: offset, width: width) }

  private func takeOver() throws(UnitError) -> AMDViDriver {
    if let driver { return driver }
    // One bus is all that a machine here has.
    let new = try AMDViDriver(self, pages: pages, buses: 1)
    try new.enable()
    driver = new
    return new
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    do throws(UnitError) {
      let driver = try takeOver()
      switch state {
      case .none: return nil
      case .bypass:
        try driver.attach(requester, to: .passThrough)
        return nil
      case .unattached:
        try driver.detach(requester)
        return nil
      case .attached:
        let domain = try driver.makeDomain()
        try driver.attach(requester, to: domain)
        return UnitDomain(driver: domain, granule: 4096, aperture: domain.aperture, reserved: AMDViDriver.reserved)
      }
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
  func stuffTCE(_ address: DMAAddress, _ entry: UInt64, count: Int) -> Bool { (try? table.stuff(address, entry, count: count)) != nil }

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
    do throws(DeviceError) { device = try IOMMUDevice(memory, options: options) } catch { throw .host("\(error)") }
  }

  func start(_ transport: any DriverTransport, on platform: DriverPlatform, _ options: DriverOptions) throws(MachineError) {
    do throws(VirtioIOMMUDriverError) { driver = try VirtioIOMMUDriver(transport, on: platform, options: options) } catch { throw .unit(error) }
  }

  func set(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    guard let driver else { throw .unit("it was not started") }
    guard state == .attached || state == .bypass else { return nil }
    let domain = VirtioIOMMUDomain(driver, nextDomain, bypass: state == .bypass)
    nextDomain += 1
    do throws(VirtioIOMMUDriverError) { try domain.attach(requester) } catch { throw .unit(error) }
    guard state == .attached else { return nil }
    return UnitDomain(driver: domain, granule: 4096, aperture: 0x1000 ... .max, reserved: [0xFEE0_0000...0xFEEF_FFFF])
  }

  func stop() { driver?.stop() }
}
