public import DriverDMA
public import PCI
public import Storage
public import Virtio
public import VirtioDrivers

/// How a device is made, and its driver.
public enum DeviceModel: Sendable {
  /// A virtio device that takes no options.
  case optionless(any OptionlessDevice.Type, driver: any VirtioDriver.Type)
  /// A virtio device that stores what is written.
  case disk(DeviceID, @Sendable (DiskOptions) throws -> any VirtioDevice, driver: any VirtioDriver.Type)
  /// A PCI function that stores what is written and is not virtio.
  case function(any DiskFunction.Type, driver: any FunctionDriver.Type)

  /// Whether bytes can be read back from where they were written.
  public var isStorage: Bool {
    switch self {
    case .optionless: false
    case .disk, .function: true
    }
  }

  /// Whether there is a legacy interface to it.
  var hasLegacyInterface: Bool {
    switch self {
    case .optionless(let type, _): PCITransport.transitionalDeviceID(type.init().id) != nil
    case .disk(let id, _, _): PCITransport.transitionalDeviceID(id) != nil
    case .function: false
    }
  }

  /// Whether feature bits are negotiated.
  public var isVirtio: Bool {
    switch self {
    case .optionless, .disk: true
    case .function: false
    }
  }
}

/// A PCI function that shows a disk.
public protocol DiskFunction: PCIFunction {
  /// The function, on a bus: to be called from `PCIBus.add`.
  ///
  /// - Throws: what is wrong with an option, or what the host refuses.
  init(_ disk: DiskOptions, on master: BusMaster) throws
}

/// What the driver of a PCI function that is not virtio can be told.
public struct FunctionDriverOptions {
  /// Data is described by lists where the function has both lists and pages.
  public var usesLists: Bool
  public var wait: BoundedWait

  public init(usesLists: Bool, wait: BoundedWait) {
    self.usesLists = usesLists
    self.wait = wait
  }
}

/// The driver of a PCI function that is not virtio.
public protocol FunctionDriver: DataDriver {
  /// Takes the function over.
  ///
  /// - Throws: what made the driver give up. No memory is left to the function then.
  init(_ access: any PCIFunctionAccess, mapper: any DMAMapper, options: FunctionDriverOptions) throws(Failure)
}
