// Questions for chains that are not walked yet, while the one before them waits: they are sent together with its own,
// and cost the peer one message instead of many.
extension IOTLB {
  /// Asks for the pages of `count` bytes at `address` that are not known, charged to no chain: the chain that needs
  /// them later finds them, or asks itself. Looks for `limit` mappings at most, and counts it down. True if all of them
  /// are known.
  public mutating func prefetch(_ address: DMAAddress, count: Int, for access: DMAAccess, limit: inout Int) -> Bool {
    guard count > 0, address.rawValue <= .max - UInt64(count - 1) else { return true }
    guard hasTable else { return false }
    let last = address.rawValue + UInt64(count - 1)
    var at = address.rawValue
    var isKnown = true
    while limit > 0 {
      limit -= 1
      var end = at | 4095
      if let known = lastKnown(at, access) {
        end = known
      } else {
        isKnown = false
        if !space.prefetch(DMAAddress(at), for: access) { limit = 0 }
      }
      guard end < last else { return isKnown }
      at = end + 1
    }
    return false
  }
}
