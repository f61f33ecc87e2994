internal import DMA
internal import Examination
internal import IOMMUInterface
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

/// A driver's memory: pages, the device addresses that lead to them, and both ends' view of them.
///
/// Without an IOMMU a device address is a guest address. With one it is a page of its own, near the top of the first 4
/// GiB, as Linux hands them out; `mappings` has what the device may reach; the driver's view does not depend on it.
final class DeviceSpace {
  let memory = FrontendMemory()
  let mappings = FrontendMappings()
  let isTranslated: Bool
  /// Device addresses equal guest addresses, until something is mapped otherwise.
  let isIdentity: Bool
  /// The driver's own view.
  private let view: Domain
  private(set) var region = RegionDescription(guestAddress: 0, size: 0, frontendAddress: 0, offset: 0)
  private var nextGuest: UInt64
  private var nextDevice: UInt64 = 0xffc0_0000
  /// The guest page behind each device page that was handed out.
  private var pages: [UInt64: UInt64] = [:]

  static let page: UInt64 = 4096
  static let guestStart: UInt64 = 0x4000_0000
  static let byteCount: UInt64 = 8 << 20

  /// - Parameters:
  ///   - offset: where in its file the memory starts.
  ///   - below: regions of a megabyte, each of which ends where the one before it starts, and is sent after it: kernels
  ///     put what is mapped later below what was mapped before, so that a back-end has some of them in one piece.
  init(translated: Bool, identity: Bool = false, offset: UInt64 = 0, below: Int = 0) throws(Finding) {
    isTranslated = translated
    isIdentity = identity
    view = Domain(memory.guest)
    // The first page stays untouched: what writes to the region's start by mistake is found out.
    nextGuest = Self.guestStart + Self.page
    region = try judged { () throws(FrontendError) in
      let region = try memory.add(byteCount: Self.byteCount, at: GuestAddress(Self.guestStart), offset: offset)
      for i in 0..<UInt64(below) {
        try memory.add(byteCount: 1 << 20, at: GuestAddress(Self.guestStart - (i + 1) << 20))
      }
      return region
    }
  }

  /// Pages that were in use and are free again.
  private var spare: [GuestAddress] = []

  /// Says that nothing leads to a page any more.
  func reuse(_ page: GuestAddress) { spare.append(page) }

  /// A page of guest memory that nothing leads to yet.
  func guestPage() -> GuestAddress {
    if let page = spare.popLast() { return page }
    nextGuest += Self.page
    precondition(nextGuest < Self.guestStart + Self.byteCount, "a check takes more pages than the memory has")
    return GuestAddress(nextGuest - Self.page)
  }

  /// Fresh pages at successive device addresses. Scattered ones have no two neighbours in guest memory.
  func allocate(
    _ count: Int = 1, scattered: Bool = false, permission: IOTLBMessage.Permission = [.read, .write]
  ) throws(Finding) -> DMAAddress {
    guard isTranslated else {
      let first = guestPage()
      for _ in 1..<max(1, count) { _ = guestPage() }
      return DMAAddress(first.rawValue)
    }
    if isIdentity {
      let run = (0..<max(1, count)).map { _ in guestPage() }
      for page in run { try map(DMAAddress(page.rawValue), to: page, permission: permission) }
      return DMAAddress(run[0].rawValue)
    }
    let first = nextDevice
    // A hole after each run: reading past its end finds nothing.
    nextDevice += UInt64(count + 1) * Self.page
    var guests = (0..<count).map { _ in guestPage() }
    if scattered {
      guests = []
      for _ in 0..<count {
        guests.append(guestPage())
        _ = guestPage()
      }
      guests.reverse()
    }
    for (i, guest) in guests.enumerated() {
      try map(DMAAddress(first + UInt64(i) * Self.page), to: guest, permission: permission)
    }
    return DMAAddress(first)
  }

  /// Makes a device page lead to a guest page, for both ends.
  func map(
    _ device: DMAAddress, to guest: GuestAddress, permission: IOTLBMessage.Permission = [.read, .write]
  ) throws(Finding) {
    let mapping = FrontendMapping(address: device, byteCount: Self.page, guestAddress: guest, permission: permission)
    guard mappings.insert(mapping) else { throw .notChecked("device page \(hex(device)) is mapped already") }
    pages[device.rawValue] = guest.rawValue
    do throws(DomainError) {
      try view.unmap(from: device, through: DMAAddress(device.rawValue + Self.page - 1))
      try view.map(device, byteCount: Self.page, to: guest, permissions: .readWrite)
    } catch {
      throw .notChecked("the driver's view of \(hex(device)): \(error)")
    }
  }

  /// Takes a page from the device, not from the driver. The device has to be sent an invalidation.
  func hide(_ device: DMAAddress) {
    mappings.remove(from: device, through: DMAAddress(device.rawValue + Self.page - 1))
  }

  /// Changes what the device may do with a page.
  func permit(_ device: DMAAddress, _ permission: IOTLBMessage.Permission) throws(Finding) {
    let guest = self.guest(device)
    hide(device)
    try map(device, to: guest, permission: permission)
  }

  /// Moves a page's bytes to a fresh guest page, which the same device address leads to from now on. Returns the old
  /// one.
  func move(_ device: DMAAddress) throws(Finding) -> GuestAddress {
    let old = guest(device)
    let new = guestPage()
    write(bytes(old, count: Int(Self.page)), to: new)
    hide(device)
    try map(device, to: new)
    return old
  }

  /// The guest address behind a device address.
  func guest(_ device: DMAAddress) -> GuestAddress {
    guard isTranslated else { return GuestAddress(device.rawValue) }
    let page = device.rawValue & ~(Self.page - 1)
    return GuestAddress((pages[page] ?? Self.guestStart) + (device.rawValue - page))
  }

  /// What lies at a device address.
  func bytes(_ device: DMAAddress, count: Int) -> [UInt8] {
    pieces(device, count).flatMap { bytes($0.0, count: $0.1) }
  }

  func write(_ bytes: [UInt8], to device: DMAAddress) {
    var done = 0
    for (guest, count) in pieces(device, bytes.count) {
      write(Array(bytes[done..<done + count]), to: guest)
      done += count
    }
  }

  func bytes(_ guest: GuestAddress, count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = memory.guest.copy(from: guest, into: &span)
    return bytes
  }

  func write(_ bytes: [UInt8], to guest: GuestAddress) { _ = memory.guest.copy(bytes.span, to: guest) }

  /// Fills a guest page with bytes that no answer consists of.
  func blank(_ guest: GuestAddress) { write([UInt8](repeating: DeviceProbe.blank, count: Int(Self.page)), to: guest) }
  func isBlank(_ guest: GuestAddress, count: Int = 4096) -> Bool {
    bytes(guest, count: count).allSatisfy { $0 == DeviceProbe.blank }
  }

  private func pieces(_ device: DMAAddress, _ count: Int) -> [(GuestAddress, Int)] {
    var list: [(GuestAddress, Int)] = []
    var at = device.rawValue
    var left = count
    while left > 0 {
      let here = min(left, Int(Self.page - at % Self.page))
      list.append((guest(DMAAddress(at)), here))
      at += UInt64(here)
      left -= here
    }
    return list
  }

  /// The driver's cells of a ring area, wherever its pages are.
  func cells(_ device: DMAAddress, count: Int) throws(Finding) -> RingMemory {
    if !isTranslated {
      guard let cells = memory.guest.cells(at: GuestAddress(device.rawValue), byteCount: count) else {
        throw .notChecked("the driver's memory is too small for its rings")
      }
      return cells
    }
    var iotlb = IOTLB(view)
    _ = iotlb.beginRound()
    defer { iotlb.endRound() }
    // The pages stay with `memory`, which outlives every ring of a session.
    return try rethrowing(
      iotlb.ring(device, count: count, for: .write),
      saying: { Finding.notChecked("the driver's view of \(hex(device)): \($0)") })
  }

  /// Puts new memory where the old was, its bytes copied. The back-end has to be sent an invalidation.
  func replaceMemory() throws(Finding) {
    let old = bytes(GuestAddress(Self.guestStart), count: Int(Self.byteCount))
    let description = region
    region = try judged { () throws(FrontendError) in
      try memory.remove(description)
      return try memory.add(byteCount: Self.byteCount, at: GuestAddress(Self.guestStart))
    }
    write(old, to: GuestAddress(Self.guestStart))
  }
}

func hex(_ number: UInt64) -> String { "0x" + String(number, radix: 16) }
func hex(_ address: DMAAddress) -> String { hex(address.rawValue) }
