internal import CLinux

/// The nodes of a ``TranslationTable``: pages of zeroes, in mappings of their own rather than from the heap, so that
/// the system has them back when the table is emptied. A heap keeps what it once had: 128 MiB for a guest that mapped
/// sparsely.
///
/// Not thread-safe; its owner locks.
@safe struct TableNodes: ~Copyable {
  /// 256 KiB are mapped at a time; only the pages that become nodes are in memory.
  static var nodesPerSlab: Int { 64 }
  // Safe: each is the address of a mapping of ours of `nodesPerSlab` pages, ended in deinit only.
  private var slabs: [UInt] = []
  /// Nodes given out, and so in memory.
  private(set) var count = 0

  init() {}

  deinit {
    for slab in slabs {
      // Safe: mapped by take(), and the code that drops the value knows that no thread reads a node any more.
      unsafe clx_unmap(UnsafeMutableRawPointer(bitPattern: slab)!, Self.nodesPerSlab * 4096)
    }
  }

  /// The address of 4096 bytes of zeroes at a multiple of 4096, or nil if there is no memory. It lasts as long as this
  /// value.
  mutating func take() -> UInt64? {
    let place = count % Self.nodesPerSlab
    if place == 0 {
      var code: Int32 = 0
      // Safe: the out-pointer is a local that lives through the call.
      guard let slab = unsafe clx_map_anonymous(Self.nodesPerSlab * 4096, &code) else { return nil }
      slabs.append(UInt(bitPattern: slab))
    }
    count += 1
    return UInt64(slabs[slabs.count - 1]) + UInt64(place) * 4096
  }
}
