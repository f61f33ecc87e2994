/// The requester of a transaction on a PCI bus: its bus, device and function numbers (PCI Express base specification,
/// requester ID). IOMMUs decide by it; virtio-iommu calls it the endpoint ID (§5.13.2).
@frozen public struct RequesterID: Hashable, Comparable, Sendable, CustomStringConvertible {
  /// Bus in bits 15...8, device in bits 7...3, function in bits 2...0.
  public var rawValue: UInt16
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }
  /// - Parameters:
  ///   - device: 0...31; higher bits are dropped.
  ///   - function: 0...7; higher bits are dropped.
  @inlinable public init(bus: UInt8, device: UInt8, function: UInt8 = 0) {
    rawValue = UInt16(bus) << 8 | UInt16(device & 31) << 3 | UInt16(function & 7)
  }
  @inlinable public var bus: UInt8 { UInt8(rawValue >> 8) }
  @inlinable public var device: UInt8 { UInt8(rawValue >> 3 & 31) }
  @inlinable public var function: UInt8 { UInt8(rawValue & 7) }
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// As lspci writes it: `00:1f.2`.
  public var description: String {
    func hexadecimal(_ n: UInt8) -> String { (n < 16 ? "0" : "") + String(n, radix: 16) }
    return "\(hexadecimal(bus)):\(hexadecimal(device)).\(function)"
  }
}
