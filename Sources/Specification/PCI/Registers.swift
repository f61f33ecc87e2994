/// Where the registers of a configuration header are, in bytes from its start (PCI local bus specification, chapter 6;
/// PCI-to-PCI bridge specification, chapter 3).
public enum PCIRegister {
  /// Both header types.
  public static let vendorID = 0x00
  public static let deviceID = 0x02
  public static let command = 0x04
  public static let status = 0x06
  public static let revisionID = 0x08
  public static let programmingInterface = 0x09
  public static let subclass = 0x0a
  public static let baseClass = 0x0b
  public static let cacheLineSize = 0x0c
  public static let latencyTimer = 0x0d
  public static let headerType = 0x0e
  public static let capabilitiesPointer = 0x34
  public static let interruptLine = 0x3c
  public static let interruptPin = 0x3d
  /// Base address register `index`: six in a type 0 header, two in a type 1 header.
  public static func bar(_ index: Int) -> Int { 0x10 + 4 * index }
  /// Type 0.
  public static let subsystemVendorID = 0x2c
  public static let subsystemID = 0x2e
  /// Type 1.
  public static let primaryBus = 0x18
  public static let secondaryBus = 0x19
  public static let subordinateBus = 0x1a
  public static let ioBase = 0x1c
  public static let ioLimit = 0x1d
  public static let memoryBase = 0x20
  public static let memoryLimit = 0x22
  public static let prefetchableBase = 0x24
  public static let prefetchableLimit = 0x26
  public static let prefetchableBaseUpper = 0x28
  public static let prefetchableLimitUpper = 0x2c
  public static let ioBaseUpper = 0x30
  public static let ioLimitUpper = 0x32
  public static let bridgeControl = 0x3e
  /// Where the first capability may be; up to here reaches the header.
  public static let firstCapability = 0x40
}

/// Capability IDs (PCI code and ID assignment specification).
public enum PCICapabilityID {
  public static let vendorSpecific: UInt8 = 0x09
  public static let express: UInt8 = 0x10
  public static let msix: UInt8 = 0x11
}

/// The command register.
public struct PCICommand: OptionSet, Hashable, Sendable {
  /// The register's 16 bits.
  public var rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }
  /// I/O BARs decode, and a bridge forwards its I/O window.
  public static var ioSpace: Self { Self(rawValue: 1) }
  /// Memory BARs decode, and a bridge forwards its memory windows.
  public static var memorySpace: Self { Self(rawValue: 2) }
  /// The function may write and read memory, messages included; a bridge lets those behind it do so.
  public static var busMaster: Self { Self(rawValue: 4) }
  public static var parityErrorResponse: Self { Self(rawValue: 1 << 6) }
  public static var systemErrorEnable: Self { Self(rawValue: 1 << 8) }
  /// The function does not assert its interrupt pin.
  public static var interruptDisable: Self { Self(rawValue: 1 << 10) }
}

/// The status register.
public enum PCIStatus {
  /// The function wants its interrupt pin asserted, whether or not it may.
  public static let interrupt: UInt16 = 1 << 3
  public static let capabilitiesList: UInt16 = 1 << 4
}

/// The interrupt pin a function uses: INTA# to INTD#.
public enum PCIInterruptPin: UInt8, Sendable {
  case a = 1, b, c, d

  /// The pin it appears at one bridge up, for a function of `device` (PCI-to-PCI bridge specification, 9.1).
  public func swizzled(by device: UInt8) -> Self {
    Self(rawValue: (rawValue - 1 + device % 4) % 4 + 1) ?? .a
  }
}

/// What identifies a function to software.
public struct PCIIdentity: Hashable, Sendable {
  public var vendorID: UInt16
  public var deviceID: UInt16
  public var revisionID: UInt8
  /// Base class, subclass and programming interface, from bit 23 down.
  public var classCode: UInt32
  public var subsystemVendorID: UInt16
  public var subsystemID: UInt16

  public init(
    vendorID: UInt16, deviceID: UInt16, revisionID: UInt8 = 0, classCode: UInt32, subsystemVendorID: UInt16 = 0,
    subsystemID: UInt16 = 0
  ) {
    self.vendorID = vendorID
    self.deviceID = deviceID
    self.revisionID = revisionID
    self.classCode = classCode
    self.subsystemVendorID = subsystemVendorID
    self.subsystemID = subsystemID
  }
}

/// All ones of an access of `width` bytes: what an address without a register reads as.
func allOnes(_ width: Int) -> UInt64 {
  width >= 8 ? .max : width <= 0 ? 0 : (1 << (8 * UInt64(width))) - 1
}
