import VirtioTestKit

@testable import DMA
@testable import IOMMUInterface

extension IOTLB {
  /// Bytes at an address, in a round of its own, or why they cannot be reached.
  mutating func look(
    _ address: UInt64, _ count: Int, _ access: DMAAccess = .read
  ) -> Result<[UInt8], DMAInterruption> {
    _ = beginRound()
    defer { endRound() }
    return bytes(address, count, access)
  }

  /// The byte at an address, in a round of its own.
  mutating func look(_ address: UInt64, _ access: DMAAccess = .read) -> Result<UInt8, DMAInterruption> {
    look(address, 1, access).map { $0[0] }
  }
}

extension Result where Failure == DMAInterruption {
  /// An access that is refused at an address.
  static func fault(_ address: UInt64, _ reason: DMAFault.Reason = .unmapped, _ access: DMAAccess = .read) -> Self {
    .failure(.fault(DMAFault(address: DMAAddress(address), access: access, reason: reason)))
  }
}

extension Domain {
  /// Maps pages.
  func map(
    _ address: UInt64, to guest: UInt64, pages: UInt64 = 1, _ permissions: DMAPermissions = .readWrite
  ) throws(DomainError) {
    try map(DMAAddress(address), byteCount: pages * 4096, to: GuestAddress(guest), permissions: permissions)
  }

  /// Unmaps what is mapped from one address through another, or one page.
  @discardableResult func unmap(_ first: UInt64, through last: UInt64? = nil) throws(DomainError) -> Int {
    try unmap(from: DMAAddress(first), through: DMAAddress(last ?? first + 4095))
  }
}
