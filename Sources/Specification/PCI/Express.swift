/// What a function is in a PCI Express hierarchy: the device or port type of its capability (PCI Express base
/// specification, 7.5.3.2).
public enum PCIExpressKind: UInt8, Sendable {
  /// Behind a root port or a switch.
  case endpoint = 0
  case rootPort = 4
  case upstreamPort = 5
  case downstreamPort = 6
  /// A bridge to a conventional bus: transactions from there carry the bridge's number.
  case bridgeToPCI = 7
  /// On the root bus itself.
  case rootComplexEndpoint = 9

  var isEndpoint: Bool { self == .endpoint || self == .rootComplexEndpoint }
}

/// Registers of the PCI Express capability, from its start (7.5.3).
public enum PCIExpress {
  /// 16 bits: version, device or port type.
  public static let capabilities = 0x02
  /// 32 bits.
  public static let deviceCapabilities = 0x04
  /// 16 bits.
  public static let deviceControl = 0x08
  /// Bytes of the capability, version 2.
  static let byteCount = 0x3c
  /// Bit 28 of the device capabilities: there is a function level reset.
  public static let hasFunctionLevelReset: UInt32 = 1 << 28
  /// Bit 15 of the device control: starts a function level reset; reads as 0.
  public static let initiateFunctionLevelReset: UInt16 = 1 << 15
}

extension ConfigurationLayout {
  /// Bytes of a PCI Express function's configuration space.
  public static var extendedByteCount: Int { 4096 }
  /// Where the first extended capability is.
  public static var firstExtendedCapability: Int { 256 }

  /// Appends the PCI Express capability, which makes the configuration space 4096 bytes. Once only.
  ///
  /// - Parameter hasFunctionLevelReset: whether software may reset the function alone (6.6.2); endpoints only.
  /// - Returns: where it is.
  @discardableResult
  public mutating func addExpress(_ kind: PCIExpressKind, hasFunctionLevelReset: Bool = true) -> Int {
    precondition(express == nil, "a function has one PCI Express capability")
    let resets = hasFunctionLevelReset && kind.isEndpoint
    var body = [UInt8](repeating: 0, count: PCIExpress.byteCount - 2)
    var mask = body
    func put(_ value: UInt32, _ at: Int, _ width: Int, _ into: inout [UInt8]) {
      for i in 0..<width { into[at - 2 + i] = UInt8(truncatingIfNeeded: value >> UInt32(8 * i)) }
    }
    put(2 | UInt32(kind.rawValue) << 4, PCIExpress.capabilities, 2, &body)
    // Role-based error reporting.
    put(1 << 15 | (resets ? PCIExpress.hasFunctionLevelReset : 0), PCIExpress.deviceCapabilities, 4, &body)
    // Relaxed ordering and no snoop allowed, reads of up to 512 bytes, as after power-on.
    put(0x2810, PCIExpress.deviceControl, 2, &body)
    put(0x7fff, PCIExpress.deviceControl, 2, &mask)
    if kind != .rootComplexEndpoint {
      // A link of one lane at 2.5 GT/s.
      put(0x11, 0x0c, 4, &body)
      put(0x11, 0x12, 2, &body)
    }
    let at = addCapability(PCICapabilityID.express, body, writable: mask)
    express = (at, resets)
    extend()
    return at
  }

  /// Appends an extended capability (7.6.3): there must be a PCI Express capability.
  ///
  /// - Parameters:
  ///   - body: what follows its header of four bytes.
  ///   - mask: the bits of `body` that software may write; missing ones are read-only.
  /// - Returns: where it is.
  @discardableResult
  public mutating func addExtendedCapability(
    _ id: UInt16, version: UInt8 = 1, _ body: [UInt8], writable mask: [UInt8] = []
  ) -> Int {
    precondition(express != nil && version < 16, "only a PCI Express function has extended capabilities")
    let at = nextExtended
    precondition(at + 4 + body.count <= Self.extendedByteCount, "no room for another capability")
    put(UInt64(id) | UInt64(version) << 16, at: at, width: 4)
    for (i, byte) in body.enumerated() { bytes[at + 4 + i] = byte }
    for (i, byte) in mask.prefix(body.count).enumerated() { writable[at + 4 + i] = byte }
    if let lastExtended {
      bytes[lastExtended + 2] |= UInt8(at << 4 & 0xf0)
      bytes[lastExtended + 3] = UInt8(at >> 4)
    }
    lastExtended = at
    nextExtended = (at + 4 + body.count + 3) & ~3
    return at
  }

  /// Zeros: the list of extended capabilities is there, and empty.
  private mutating func extend() {
    let more = [UInt8](repeating: 0, count: Self.extendedByteCount - bytes.count)
    bytes += more
    writable += more
  }
}
