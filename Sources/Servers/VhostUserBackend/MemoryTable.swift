internal import DMA
internal import HostIO
internal import SocketMessages
internal import Synchronization
internal import VhostUser

/// The guest's memory as the front-end describes it, region by region: `DMA`'s table, and where the front-end itself
/// has each region.
///
/// Control thread only: taking a region away waits for the queues that use it. No other thread looks a front-end
/// address up, so none can find the two apart while they change; queues know ``memory`` alone.
final class MemoryTable: Sendable {
  /// As many regions as libvhost-user and the rust-vmm crates take: what QEMU's DIMM slots can ask for.
  static let slots = 509

  let memory = GuestMemory()
  private let regions = Mutex<[RegionDescription]>([])

  /// Replaces the whole table (SET_MEM_TABLE). On an error nothing has changed.
  func replace(
    with descriptions: [RegionDescription], _ files: inout FileDescriptorList, guestAddresses: Bool
  ) throws(ProtocolError) {
    var mapped: [MemoryRegion] = []
    for (i, description) in descriptions.enumerated() {
      guard let file = files.takeFirst() else { throw ProtocolError("SET_MEM_TABLE", "a region has no descriptor") }
      mapped.append(Self.region(description, try Self.map(description, file, "SET_MEM_TABLE", guestAddresses)))
      try Self.check(description, against: descriptions[..<i], "SET_MEM_TABLE")
    }
    try rethrowing(memory.replace(with: mapped), as: Self.refusal(of: "SET_MEM_TABLE"))
    regions.withLock { $0 = descriptions }
  }

  /// Forgets every region.
  func clear() throws(ProtocolError) {
    try rethrowing(memory.replace(with: []), as: Self.refusal(of: "SET_OWNER"))
    regions.withLock { $0 = [] }
  }

  /// Adds a region (ADD_MEM_REG).
  func add(
    _ description: RegionDescription, _ file: consuming FileDescriptor, guestAddresses: Bool
  ) throws(ProtocolError) {
    guard memory.regions.count < Self.slots else {
      throw ProtocolError("ADD_MEM_REG", "all \(Self.slots) slots are taken")
    }
    try add(description, try Self.map(description, file, "ADD_MEM_REG", guestAddresses))
  }

  /// Adds a region that is mapped already.
  func add(_ description: RegionDescription, _ mapping: HostMapping) throws(ProtocolError) {
    try Self.check(description, against: regions.withLock { $0 }[...], "ADD_MEM_REG")
    try rethrowing(memory.add(Self.region(description, mapping)), as: Self.refusal(of: "ADD_MEM_REG"))
    regions.withLock { $0.append(description) }
  }

  /// Removes a region (REM_MEM_REG), identified by both addresses and its size.
  func remove(_ description: RegionDescription) throws(ProtocolError) {
    let index = regions.withLock { regions in
      regions.firstIndex {
        $0.guestAddress == description.guestAddress && $0.frontendAddress == description.frontendAddress
          && $0.size == description.size
      }
    }
    guard let index else { throw Self.refusal(of: "REM_MEM_REG")(.missing) }
    try rethrowing(
      memory.remove(guestAddress: GuestAddress(description.guestAddress), byteCount: description.size),
      as: Self.refusal(of: "REM_MEM_REG"))
    _ = regions.withLock { $0.remove(at: index) }
  }

  // MARK: Front-end addresses

  /// The guest address of a front-end address, if memory is there.
  func guestAddress(of address: FrontendAddress) -> GuestAddress? {
    place(of: address).map { GuestAddress($0.region.guestAddress + $0.offset) }
  }

  /// The host memory from a front-end address on, as a run from `start` through `last`, or through the end of its
  /// region if that comes first; nil where there is no memory.
  func run(
    at address: FrontendAddress, seenFrom start: DMAAddress, through last: DMAAddress, permissions: DMAPermissions
  ) -> HostRun? {
    guard start <= last, let (region, offset) = place(of: address),
      let whole = memory.run(at: GuestAddress(region.guestAddress))
    else { return nil }
    let more = min(last.rawValue - start.rawValue, region.size - 1 - offset)
    return whole.part(from: offset, count: more + 1, seenFrom: start, permissions: permissions)
  }

  private func place(of address: FrontendAddress) -> (region: RegionDescription, offset: UInt64)? {
    regions.withLock { regions in
      for region in regions { if let offset = region.offset(of: address) { return (region, offset) } }
      return nil
    }
  }

  private static func check(
    _ description: RegionDescription, against others: ArraySlice<RegionDescription>, _ message: String
  ) throws(ProtocolError) {
    if others.contains(where: { $0.overlapsInFrontend(description) }) { throw refusal(of: message)(.overlap) }
  }

  private static func map(
    _ description: RegionDescription, _ file: consuming FileDescriptor, _ message: String, _ guestAddresses: Bool
  ) throws(ProtocolError) -> HostMapping {
    guard description.size > 0 else { throw ProtocolError(message, "a region of size 0") }
    guard description.guestAddress <= .max - (description.size - 1),
      description.frontendAddress <= .max - (description.size - 1)
    else { throw ProtocolError(message, "a region passes the end of the address space") }
    guard description.size <= UInt64(Int64.max), description.offset <= UInt64(Int64.max) - description.size else {
      throw ProtocolError(message, "a region passes the end of its file")
    }
    guard !guestAddresses || description.guestAddress == description.frontendAddress else {
      throw ProtocolError(message, "with GPA_ADDRESSES a region's two addresses must be equal")
    }
    // Touching memory beyond the file's end would yield zeroes that no other process sees.
    let size: UInt64
    let raw = file.rawValue
    let memoryFile = MemoryFile(adopting: file)
    size = try rethrowing(memoryFile.size(), saying: { ProtocolError(message, "its descriptor: \($0)") })
    guard size == 0 || description.offset + description.size <= size else {
      throw ProtocolError(
        message, "a region of \(description.size) bytes at \(description.offset) does not fit its file of \(size) bytes"
      )
    }
    let mapping = try rethrowing(
      HostMapping(descriptor: raw, offset: description.offset, byteCount: Int(description.size)),
      as: { (error: MappingError) in ProtocolError(message, "the region cannot be mapped: \(HostError(error))") })
    _ = consume memoryFile
    return mapping
  }

  private static func region(_ description: RegionDescription, _ mapping: HostMapping) -> MemoryRegion {
    MemoryRegion(guestAddress: GuestAddress(description.guestAddress), byteCount: description.size, mapping: mapping)
  }

  /// The protocol error of the message `name` that the memory's error makes.
  private static func refusal(of name: String) -> (MemoryRegionError) -> ProtocolError {
    { error in
      switch error {
      case .malformed:
        ProtocolError(name, "a region is empty, or passes the end of the address space or of its mapping")
      case .overlap: ProtocolError(name, "two regions overlap")
      case .missing: ProtocolError(name, "no region has these addresses and this size")
      }
    }
  }
}
