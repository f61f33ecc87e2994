internal import DMA
internal import HostIO
internal import VhostUser

/// The guest's memory as the front-end describes it, region by region, into `DMA`'s table.
///
/// Control thread only: taking a region away waits for the queues that use it.
struct MemoryTable {
  /// As many regions as libvhost-user and the rust-vmm crates take: what QEMU's DIMM slots can ask for.
  static let slots = 509

  let memory = GuestMemory()

  /// Replaces the whole table (SET_MEM_TABLE). On an error nothing has changed.
  func replace(
    with descriptions: [RegionDescription], _ files: inout FileDescriptorList, guestAddresses: Bool
  ) throws(ProtocolError) {
    var regions: [MemoryRegion] = []
    for description in descriptions {
      guard let file = files.takeFirst() else { throw ProtocolError("SET_MEM_TABLE", "a region has no descriptor") }
      regions.append(try Self.map(description, file, "SET_MEM_TABLE", guestAddresses))
    }
    try rethrowing(memory.replace(with: regions), as: Self.refusal(of: "SET_MEM_TABLE"))
  }

  /// Forgets every region.
  func clear() throws(ProtocolError) {
    try rethrowing(memory.replace(with: []), as: Self.refusal(of: "SET_OWNER"))
  }

  /// Adds a region (ADD_MEM_REG).
  func add(
    _ description: RegionDescription, _ file: consuming FileDescriptor, guestAddresses: Bool
  ) throws(ProtocolError) {
    guard memory.regions.count < Self.slots else {
      throw ProtocolError("ADD_MEM_REG", "all \(Self.slots) slots are taken")
    }
    let region = try Self.map(description, file, "ADD_MEM_REG", guestAddresses)
    try rethrowing(memory.add(region), as: Self.refusal(of: "ADD_MEM_REG"))
  }

  /// Removes a region (REM_MEM_REG), identified by both addresses and its size.
  func remove(_ description: RegionDescription) throws(ProtocolError) {
    try rethrowing(
      memory.remove(
        guestAddress: GuestAddress(description.guestAddress),
        frontendAddress: FrontendAddress(description.frontendAddress),
        byteCount: description.size), as: Self.refusal(of: "REM_MEM_REG"))
  }

  private static func map(
    _ description: RegionDescription, _ file: consuming FileDescriptor, _ message: String, _ guestAddresses: Bool
  ) throws(ProtocolError) -> MemoryRegion {
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
    do throws(MappingError) {
      let mapping = try HostMapping(descriptor: raw, offset: description.offset, byteCount: Int(description.size))
      _ = consume memoryFile
      return MemoryRegion(
        guestAddress: GuestAddress(description.guestAddress),
        frontendAddress: FrontendAddress(description.frontendAddress),
        byteCount: description.size, mapping: mapping)
    } catch {
      throw ProtocolError(message, "the region cannot be mapped: \(HostError(error))")
    }
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
