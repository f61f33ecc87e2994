internal import SocketMessages

/// DMA_MAP: device addresses that lead to memory of the client's.
struct MapRequest: Payload {
  /// Bits of ``flags``.
  static let readable: UInt32 = 1 << 0
  static let writable: UInt32 = 1 << 1
  /// How the memory is reached (QEMU 11.1): by mapping the descriptor, or by reading and writing it as a file. Without
  /// either: by mapping if a descriptor came.
  static let byMapping: UInt32 = 1 << 2
  static let byFile: UInt32 = 1 << 3

  var flags: UInt32
  /// Where in the descriptor's file the memory starts.
  var offset: UInt64
  /// The first device address.
  var address: UInt64
  /// Bytes.
  var size: UInt64

  init(flags: UInt32, offset: UInt64, address: UInt64, size: UInt64) {
    (self.flags, self.offset, self.address, self.size) = (flags, offset, address, size)
  }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    _ = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    offset = try reader.take(UInt64.self)
    address = try reader.take(UInt64.self)
    size = try reader.take(UInt64.self)
  }

  func write(to writer: inout PayloadWriter) {
    writer.put(UInt32(32))
    writer.put(flags)
    writer.put(offset)
    writer.put(address)
    writer.put(size)
  }
}

/// DMA_UNMAP: device addresses that lead nowhere from the reply on. The reply repeats it.
struct UnmapRequest: Payload {
  static let getDirtyBitmap: UInt32 = 1 << 0
  static let everything: UInt32 = 1 << 1

  var flags: UInt32
  var address: UInt64
  var size: UInt64

  init(flags: UInt32 = 0, address: UInt64, size: UInt64) {
    (self.flags, self.address, self.size) = (flags, address, size)
  }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    _ = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    address = try reader.take(UInt64.self)
    size = try reader.take(UInt64.self)
  }

  func write(to writer: inout PayloadWriter) {
    writer.put(UInt32(24))
    writer.put(flags)
    writer.put(address)
    writer.put(size)
  }
}
