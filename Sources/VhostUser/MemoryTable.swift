internal import DMA
internal import HostIO

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
    do throws(MemoryRegionError) {
      try memory.replace(with: regions)
    } catch {
      throw ProtocolError("SET_MEM_TABLE", Self.words(error))
    }
  }

  /// Forgets every region.
  func clear() throws(ProtocolError) {
    do throws(MemoryRegionError) {
      try memory.replace(with: [])
    } catch {
      throw ProtocolError("SET_OWNER", Self.words(error))
    }
  }

  /// Adds a region (ADD_MEM_REG).
  func add(
    _ description: RegionDescription, _ file: consuming FileDescriptor, guestAddresses: Bool
  ) throws(ProtocolError) {
    guard memory.regions.count < Self.slots else {
      throw ProtocolError("ADD_MEM_REG", "all \(Self.slots) slots are taken")
    }
    let region = try Self.map(description, file, "ADD_MEM_REG", guestAddresses)
    do throws(MemoryRegionError) {
      try memory.add(region)
    } catch {
      throw ProtocolError("ADD_MEM_REG", Self.words(error))
    }
  }

  /// Removes a region (REM_MEM_REG), identified by both addresses and its size.
  func remove(_ description: RegionDescription) throws(ProtocolError) {
    do throws(MemoryRegionError) {
      try memory.remove(
        guestAddress: GuestAddress(description.guestAddress),
        frontendAddress: FrontendAddress(description.frontendAddress),
        byteCount: description.size)
    } catch {
      throw ProtocolError("REM_MEM_REG", Self.words(error))
    }
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
    // Touching memory beyond the file's end would yield zeroes that nobody else sees.
    let size: UInt64
    let raw = file.rawValue
    let memoryFile = MemoryFile(adopting: file)
    do throws(HostError) { size = try memoryFile.size() } catch {
      throw ProtocolError(message, "its descriptor: \(error)")
    }
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

  private static func words(_ error: MemoryRegionError) -> String {
    switch error {
    case .malformed: "a region is empty, or passes the end of the address space or of its mapping"
    case .overlap: "two regions overlap"
    case .missing: "no region has these addresses and this size"
    }
  }
}
