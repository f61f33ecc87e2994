import DMA
import DriverDMA

/// The driver's side of Doorbell Buffer Config: doorbells in memory, and where the controller says which of them are to
/// be rung, a page each. One thread uses it.
final class DriverDoorbells {
  private let doorbells: DMAMapping
  private let eventIndices: DMAMapping
  private let doorbellCells: RingMemory
  private let eventCells: RingMemory

  static var byteCount: UInt64 { 4096 }

  init(_ mapper: any DMAMapper) throws(NVMeDriverError) {
    do throws(DMAError) {
      let doorbells = try DMAMapping(allocating: Self.byteCount, by: mapper)
      let eventIndices = try DMAMapping(allocating: Self.byteCount, by: mapper)
      guard let doorbellCells = mapper.memory.cells(at: doorbells.guest, byteCount: Int(Self.byteCount)) else {
        throw DMAError.missing(doorbells.guest)
      }
      guard let eventCells = mapper.memory.cells(at: eventIndices.guest, byteCount: Int(Self.byteCount)) else {
        throw DMAError.missing(eventIndices.guest)
      }
      self.doorbellCells = doorbellCells
      self.eventCells = eventCells
      self.doorbells = doorbells
      self.eventIndices = eventIndices
    } catch {
      throw .dma(error)
    }
    for at in stride(from: 0, to: Int(Self.byteCount), by: 8) {
      doorbellCells.store64(0, at: at)
      eventCells.store64(0, at: at)
    }
  }

  var addresses: (doorbells: DMAAddress, eventIndices: DMAAddress) { (doorbells.address, eventIndices.address) }

  /// Writes a doorbell. Whether its register has to be rung: the controller asked to hear of a value that this passes.
  func write(_ index: Int, from old: UInt32, to new: UInt32) -> Bool {
    doorbellCells.storeRelease32(new.littleEndian, at: 4 * index)
    RingMemory.fence()
    let event = UInt16(truncatingIfNeeded: UInt32(littleEndian: eventCells.load32(at: 4 * index)))
    let (old, new) = (UInt16(truncatingIfNeeded: old), UInt16(truncatingIfNeeded: new))
    return new &- event &- 1 < new &- old
  }
}
