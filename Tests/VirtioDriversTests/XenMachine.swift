import DMA
import DriverDMA

/// The machine under a Xen guest: the same memory at other addresses, a part of it in pieces of 64 KiB in reverse
/// order.
final class XenMachine: MachinePages {
  /// What devices reach.
  let machine = GuestMemory()
  private let scattered: Range<UInt64>
  static let start: UInt64 = 1 << 40
  static let piece: UInt64 = 64 << 10
  /// Whether the guest's memory has a hole here.
  var hole: UInt64?

  /// - Parameter scattered: guest addresses, in whole pieces.
  init(_ memory: GuestMemory, scattered: Range<UInt64>) throws {
    self.scattered = scattered
    let region = memory.regions[0]
    func add(_ guest: UInt64, _ count: UInt64) throws {
      try machine.add(
        MemoryRegion(
          guestAddress: GuestAddress(address(of: guest)), byteCount: count,
          mapping: region.mapping,
          mappingOffset: guest))
    }
    try add(0, scattered.lowerBound)
    for guest in stride(from: scattered.lowerBound, to: scattered.upperBound, by: Int(Self.piece)) {
      try add(guest, Self.piece)
    }
    try add(scattered.upperBound, region.byteCount - scattered.upperBound)
  }

  func address(of guest: UInt64) -> UInt64 {
    guard scattered.contains(guest) else { return Self.start + guest }
    let offset = guest - scattered.lowerBound
    return Self.start + scattered.upperBound - (offset / Self.piece + 1) * Self.piece + offset % Self.piece
  }

  func machinePage(of guestPage: UInt64) -> UInt64? { guestPage == hole ? nil : address(of: guestPage << 12) >> 12 }
}
