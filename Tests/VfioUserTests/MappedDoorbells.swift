import DMA
import HostIO

@testable import VfioUser

/// Doorbells in a client's memory: a part of a BAR.
final class MappedDoorbells {
  let bar: Int
  let map: SparseMap
  let file: MemoryFile
  let mapping: HostMapping

  init(bar: Int, _ info: RegionInfo, _ map: SparseMap, _ descriptor: consuming FileDescriptor) throws {
    (self.bar, self.map) = (bar, map)
    mapping = try HostMapping(
      descriptor: descriptor.rawValue, offset: info.offset + map.offset, byteCount: Int(map.size))
    file = MemoryFile(adopting: descriptor)
  }

  /// Stores what a driver writes; false: it is elsewhere.
  func store(_ bar: Int, _ offset: UInt64, _ width: Int, _ value: UInt32) -> Bool {
    guard bar == self.bar, offset >= map.offset, offset < map.offset + map.size, width == 2 || width == 4,
      let cells = mapping.cells(from: 0, byteCount: mapping.byteCount)
    else { return false }
    let at = Int(offset - map.offset)
    // As a driver's writes to registers: all that it wrote to memory comes before.
    RingMemory.fence()
    if width == 2 {
      cells.storeRelease16(UInt16(truncatingIfNeeded: value), at: at)
    } else {
      cells.storeRelease32(value, at: at)
    }
    return true
  }
}
