internal import DMA
internal import IOMMUInterface
internal import Virtio

/// What an ``IOMMUDevice`` carries to another machine, as bytes: little-endian, a version first.
///
///     u8 version   u8 how bypass is had   u8 the field bypass   u8 features were negotiated   u128 those features
///     u32 domains: u32 number   u8 is a bypass domain
///         u32 mappings: u64 first   u64 last   u64 physical   u8 permissions
///     u32 attachments: u16 requester   u32 domain
///
/// Nothing in it is believed before it was checked: the bytes come from another machine.
struct IOMMUState {
  struct Domain {
    var number: UInt32
    var isBypass: Bool
    var mappings: [GuestRun] = []
  }
  var bypassKind: UInt8
  var bypass: Bool
  var negotiated: Features?
  /// Ascending by number.
  var domains: [Domain] = []
  /// Ascending by requester.
  var attachments: [(requester: RequesterID, domain: UInt32)] = []

  static var version: UInt8 { 1 }
  private static var domainSize: Int { 9 }
  private static var mappingSize: Int { 25 }
  private static var attachmentSize: Int { 6 }

  init(bypassKind: UInt8, bypass: Bool, negotiated: Features?) {
    self.bypassKind = bypassKind
    self.bypass = bypass
    self.negotiated = negotiated
  }

  // MARK: To bytes

  var bytes: [UInt8] {
    var bytes: [UInt8] = [Self.version, bypassKind, bypass ? 1 : 0, negotiated == nil ? 0 : 1]
    func put<T: FixedWidthInteger>(_ value: T) {
      for i in 0..<MemoryLayout<T>.size { bytes.append(UInt8(truncatingIfNeeded: value >> T(8 * i))) }
    }
    put(negotiated?.rawValue ?? 0)
    put(UInt32(truncatingIfNeeded: domains.count))
    for domain in domains {
      put(domain.number)
      put(UInt8(domain.isBypass ? 1 : 0))
      put(UInt32(truncatingIfNeeded: domain.mappings.count))
      bytes.reserveCapacity(bytes.count + domain.mappings.count * Self.mappingSize)
      for run in domain.mappings {
        put(run.first.rawValue)
        put(run.last.rawValue)
        put(run.guest.rawValue)
        put(run.permissions.rawValue)
      }
    }
    put(UInt32(truncatingIfNeeded: attachments.count))
    for (requester, domain) in attachments {
      put(requester.rawValue)
      put(domain)
    }
    return bytes
  }

  // MARK: From bytes

  /// Bytes that are read once, from the front.
  private struct Reader {
    let bytes: [UInt8]
    var at = 0
    var left: Int { bytes.count - at }

    mutating func take<T: FixedWidthInteger>(_: T.Type) throws(DeviceError) -> T {
      guard left >= MemoryLayout<T>.size else {
        throw DeviceError("the IOMMU's state is cut short at byte \(bytes.count)")
      }
      var value: T = 0
      for i in 0..<MemoryLayout<T>.size { value |= T(truncatingIfNeeded: bytes[at + i]) << T(8 * i) }
      at += MemoryLayout<T>.size
      return value
    }

    mutating func flag() throws(DeviceError) -> Bool {
      let value = try take(UInt8.self)
      guard value <= 1 else { throw DeviceError("the IOMMU's state says \(value) where it can say 0 or 1") }
      return value == 1
    }

    /// A number of things of so many bytes at least: no more than there are bytes for, even if the count is larger.
    mutating func count(of size: Int) throws(DeviceError) -> Int {
      let count = Int(try take(UInt32.self))
      guard count <= left / size else {
        throw DeviceError("the IOMMU's state is cut short: it has no room for the \(count) things it names")
      }
      return count
    }
  }

  init(_ bytes: [UInt8]) throws(DeviceError) {
    var reader = Reader(bytes: bytes)
    let version = try reader.take(UInt8.self)
    guard version == Self.version else { throw DeviceError("version \(version) of an IOMMU's state is unknown here") }
    bypassKind = try reader.take(UInt8.self)
    bypass = try reader.flag()
    let wasNegotiated = try reader.flag()
    let features = Features(rawValue: try reader.take(UInt128.self))
    guard wasNegotiated || features.isEmpty else {
      throw DeviceError("the IOMMU's state has features that were not negotiated")
    }
    negotiated = wasNegotiated ? features : nil
    for _ in 0..<(try reader.count(of: Self.domainSize)) {
      var domain = Domain(number: try reader.take(UInt32.self), isBypass: try reader.flag())
      let count = try reader.count(of: Self.mappingSize)
      domain.mappings.reserveCapacity(count)
      for _ in 0..<count {
        let first = try reader.take(UInt64.self), last = try reader.take(UInt64.self),
          guest = try reader.take(UInt64.self)
        let permissions = try reader.take(UInt8.self)
        guard permissions & ~DMAPermissions.readWrite.rawValue == 0 else {
          throw DeviceError("the IOMMU's state has permissions that there are not")
        }
        domain.mappings.append(
          GuestRun(
            first: DMAAddress(first), last: DMAAddress(last), guest: GuestAddress(guest),
            permissions: DMAPermissions(rawValue: permissions)))
      }
      domains.append(domain)
    }
    for _ in 0..<(try reader.count(of: Self.attachmentSize)) {
      let requester = RequesterID(rawValue: try reader.take(UInt16.self))
      attachments.append((requester, try reader.take(UInt32.self)))
    }
    guard reader.left == 0 else { throw DeviceError("the IOMMU's state has \(reader.left) bytes too many") }
  }
}
