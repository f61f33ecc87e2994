internal import DMA

extension GuestMemory {
  /// A word of a table that an IOMMU walks, fetched once; nil where there is no memory, or not eight bytes of it in one
  /// region.
  func tableWord(at address: UInt64) -> UInt64? {
    guard address & 7 == 0, let cell = cells(at: GuestAddress(address), byteCount: 8) else { return nil }
    return cell.loadAcquire64(at: 0)
  }
}

extension GuestRun {
  /// Every address is guest-physical: the answer of a unit that is off, or of pass-through.
  static var identity: GuestRun {
    GuestRun(first: DMAAddress(0), last: DMAAddress(.max), guest: GuestAddress(0), permissions: .readWrite)
  }

  /// The page of `size` bytes, a power of two, around `address`, when it lies at `guest`.
  init(page size: UInt64, around address: UInt64, at guest: UInt64, permissions: DMAPermissions) {
    let first = address & ~(size - 1)
    self.init(
      first: DMAAddress(first), last: DMAAddress(first | (size - 1)), guest: GuestAddress(guest & ~(size - 1)),
      permissions: permissions)
  }
}
