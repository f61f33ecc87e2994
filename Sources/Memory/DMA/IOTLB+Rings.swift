// Ring areas: resolved whole, page by page, and used until the mappings under them change.
extension IOTLB {
  /// A ring area of `count` bytes, all of them resolved, scattered or not.
  public mutating func ring(
    _ address: DMAAddress, count: Int, for access: DMAAccess
  ) throws(DMAInterruption) -> RingMemory {
    precondition(count > 0)
    let first = address.rawValue & ~4095
    guard address.rawValue <= UInt64.max - UInt64(count - 1) else {
      throw .fault(DMAFault(address: address, access: access, reason: .unmapped))
    }
    let lead = Int(address.rawValue & 4095)
    let last = (address.rawValue + UInt64(count - 1)) & ~4095
    var pages: [UInt64] = []
    var remotePages = 0
    var isReadable = true
    var at = first
    // All pages are asked for before giving up, so that their answers are under way together.
    var pending = false
    while true {
      do throws(DMAInterruption) {
        // Only bytes of the area may be touched: its first page is entered at the area's start.
        let probe = max(at, address.rawValue)
        let run = try lookUp(probe, access)
        let needed = min(at | 4095, address.rawValue + UInt64(count - 1))
        if run.isRemote {
          remotePages += 1
          if !run.permissions.allows(.read) { isReadable = false }
        }
        // Cells are aligned on the device's side (§2.7, §2.8); an odd offset between both sides would undo that.
        guard run.isRemote || (run.host &- run.start) & 7 == 0 else {
          throw DMAInterruption.fault(DMAFault(address: DMAAddress(probe), access: access, reason: .discontiguous))
        }
        guard run.last >= needed else {
          throw DMAInterruption.fault(DMAFault(address: DMAAddress(run.last + 1), access: access, reason: .unmapped))
        }
        pages.append(at &+ (run.host &- run.start))
      } catch .pending {
        pending = true
      } catch {
        throw error
      }
      if at == last { break }
      at += 4096
    }
    if pending { throw .pending }
    if remotePages > 0 {
      guard remotePages == pages.count else {
        throw .fault(DMAFault(address: address, access: access, reason: .discontiguous))
      }
      return try remoteRing(address, count, isReadable, access)
    }
    let isOneRun = pages.indices.allSatisfy { pages[$0] == pages[0] &+ UInt64($0) << 12 }
    // Safe: every page was just resolved for this access, and the caller re-resolves when the generation moves.
    if isOneRun {
      return unsafe RingMemory(base: UnsafeMutableRawPointer(bitPattern: UInt(pages[0]))! + lead, byteCount: count)
    }
    return RingMemory(pages: pages, lead: lead, byteCount: count)
  }

  private mutating func lookUp(_ a: UInt64, _ access: DMAAccess) throws(DMAInterruption) -> HostRun {
    if let table, let found = table.run(at: DMAAddress(a)), found.permissions.allows(access) { return found }
    return try ask(a, access)
  }
}
