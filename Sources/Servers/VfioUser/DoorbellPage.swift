internal import DMA
internal import HostIO
internal import PCI
internal import Synchronization

/// A function's doorbells in memory that its client maps too, and the way from there to the function.
///
/// A client has a page of its own: one that has gone, and still has the memory, rings nothing for the next. It can
/// write what it likes: each number is brought to the function as if it had been sent. It cannot cut the memory short,
/// for the file is sealed.
final class DoorbellPage: Sendable {
  let area: DoorbellArea
  private let file: MemoryFile
  private let cells: DoorbellCells
  private let ring: @Sendable (Int, UInt32) -> Void
  /// One look at a time; the numbers of it, whose storage is kept.
  private let taken = Mutex<[(cell: Int, value: UInt32)]>([])
  private let lookCount = Atomic<UInt64>(0)
  private let doorbellCount = Atomic<UInt64>(0)

  /// - Parameter ring: brings a number to the function.
  init(_ area: DoorbellArea, ring: @escaping @Sendable (Int, UInt32) -> Void) throws(HostError) {
    let (start, overflow) = area.offset.addingReportingOverflow(area.byteCount)
    guard !overflow, let byteCount = Int(exactly: area.byteCount) else {
      throw HostError("mmap", errno: .invalidArgument)
    }
    // As long as the BAR up to there, so that an offset in the BAR is one in the file; what comes before is a hole.
    file = try MemoryFile(name: "doorbells", size: start, seals: [.shrink, .grow, .seals])
    let mapping: HostMapping
    do throws(MappingError) {
      mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: area.offset, byteCount: byteCount)
    } catch {
      throw HostError("mmap", errno: Errno(rawValue: error.code))
    }
    guard let cells = DoorbellCells(mapping, from: 0, count: area.count) else {
      throw HostError("mmap", errno: .invalidArgument)
    }
    (self.area, self.cells, self.ring) = (area, cells, ring)
  }

  /// What the client maps, from ``area``'s offset on.
  var descriptor: Int32 { file.descriptor.rawValue }
  /// How often the cells were looked at.
  var looks: UInt64 { lookCount.load(ordering: .relaxed) }
  /// Numbers brought to the function.
  var doorbells: UInt64 { doorbellCount.load(ordering: .relaxed) }

  /// Brings what was left to the function. True: there was something.
  ///
  /// To be called before anything else is done to the function for the client: what the client left before is there
  /// before, as if both were messages.
  @discardableResult
  func look() -> Bool {
    lookCount.add(1, ordering: .relaxed)
    return taken.withLock { taken in
      taken.removeAll(keepingCapacity: true)
      // Low ones are taken first and brought last: what the client left before one of them is found, and is brought
      // before.
      for cell in 0..<cells.count {
        if let value = cells.take(cell) { taken.append((cell, value)) }
      }
      for (cell, value) in taken.reversed() { ring(cell, value) }
      doorbellCount.add(UInt64(taken.count), ordering: .relaxed)
      return !taken.isEmpty
    }
  }
}
