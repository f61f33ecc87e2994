internal import SocketMessages

/// DEVICE_GET_INFO, and its reply.
struct DeviceInfo: Payload {
  static let resets: UInt32 = 1 << 0
  static let isPCI: UInt32 = 1 << 1
  static let byteCount: UInt32 = 16

  var argumentSize = Self.byteCount
  var flags: UInt32 = 0
  var regionCount: UInt32 = 0
  var interruptCount: UInt32 = 0

  init() {}

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    argumentSize = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    regionCount = try reader.take(UInt32.self)
    interruptCount = try reader.take(UInt32.self)
  }

  func write(to writer: inout PayloadWriter) {
    for word in [argumentSize, flags, regionCount, interruptCount] { writer.put(word) }
  }
}

/// DEVICE_GET_REGION_INFO, and its reply, before its capabilities.
struct RegionInfo: Payload {
  static let readable: UInt32 = 1 << 0
  static let writable: UInt32 = 1 << 1
  /// A descriptor comes along, of which the client may map a part.
  static let mappable: UInt32 = 1 << 2
  /// Capabilities follow, from ``capabilityOffset`` on.
  static let hasCapabilities: UInt32 = 1 << 3
  static let byteCount: UInt32 = 32

  var argumentSize = Self.byteCount
  var flags: UInt32 = 0
  var index: UInt32
  var capabilityOffset: UInt32 = 0
  var size: UInt64 = 0
  var offset: UInt64 = 0

  init(index: UInt32) { self.index = index }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    argumentSize = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    index = try reader.take(UInt32.self)
    capabilityOffset = try reader.take(UInt32.self)
    size = try reader.take(UInt64.self)
    offset = try reader.take(UInt64.self)
  }

  func write(to writer: inout PayloadWriter) {
    for word in [argumentSize, flags, index, capabilityOffset] { writer.put(word) }
    writer.put(size)
    writer.put(offset)
  }
}

/// The capability of a region of which one part can be mapped.
struct SparseMap: Payload {
  static let byteCount: UInt32 = 32
  /// The capability's number.
  static let id: UInt16 = 1

  /// Where in the region, and in the descriptor's file, the part is.
  var offset: UInt64
  var size: UInt64

  init(offset: UInt64, size: UInt64) { (self.offset, self.size) = (offset, size) }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    let (id, version) = (try reader.take(UInt16.self), try reader.take(UInt16.self))
    _ = try reader.take(UInt32.self)
    let count = try reader.take(UInt32.self)
    _ = try reader.take(UInt32.self)
    guard id == Self.id, version == 1, count == 1 else {
      throw ProtocolError("DEVICE_GET_REGION_INFO", "its capability is \(id), version \(version), with \(count) parts")
    }
    (offset, size) = (try reader.take(UInt64.self), try reader.take(UInt64.self))
  }

  func write(to writer: inout PayloadWriter) {
    writer.put(Self.id)
    writer.put(UInt16(1))
    writer.put(UInt32(0))
    writer.put(UInt32(1))
    writer.put(UInt32(0))
    writer.put(offset)
    writer.put(size)
  }
}

/// The regions of a PCI device by their numbers (`linux/vfio.h`).
enum VfioRegion {
  /// 0 to 5 are the BARs.
  static let barCount: UInt32 = 6
  static let rom: UInt32 = 6
  static let configuration: UInt32 = 7
  static let vga: UInt32 = 8
  static let count: UInt32 = 9
}

/// DEVICE_GET_IRQ_INFO, and its reply.
struct InterruptInfo: Payload {
  static let eventfd: UInt32 = 1 << 0
  static let maskable: UInt32 = 1 << 1
  static let automasked: UInt32 = 1 << 2
  static let noResize: UInt32 = 1 << 3
  static let byteCount: UInt32 = 16

  var argumentSize = Self.byteCount
  var flags: UInt32 = 0
  var index: UInt32
  var count: UInt32 = 0

  init(index: UInt32) { self.index = index }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    argumentSize = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    index = try reader.take(UInt32.self)
    count = try reader.take(UInt32.self)
  }

  func write(to writer: inout PayloadWriter) {
    for word in [argumentSize, flags, index, count] { writer.put(word) }
  }
}

/// DEVICE_SET_IRQS; truth values may follow it.
struct SetInterrupts: Payload {
  static let dataNone: UInt32 = 1 << 0
  static let dataBool: UInt32 = 1 << 1
  static let dataEventfd: UInt32 = 1 << 2
  static let mask: UInt32 = 1 << 3
  static let unmask: UInt32 = 1 << 4
  static let trigger: UInt32 = 1 << 5
  static let byteCount = 20

  var flags: UInt32
  var index: UInt32
  var start: UInt32
  var count: UInt32
  /// One for each interrupt, with ``dataBool``.
  var truths: [UInt8] = []

  init(flags: UInt32, index: UInt32, start: UInt32, count: UInt32) {
    (self.flags, self.index, self.start, self.count) = (flags, index, start, count)
  }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    _ = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    index = try reader.take(UInt32.self)
    start = try reader.take(UInt32.self)
    count = try reader.take(UInt32.self)
    truths = try reader.take(count: reader.remaining)
  }

  func write(to writer: inout PayloadWriter) {
    for word in [UInt32(Self.byteCount + truths.count), flags, index, start, count] { writer.put(word) }
    writer.put(truths)
  }
}

/// What precedes the data of REGION_READ and REGION_WRITE, and of the replies.
struct RegionAccess: Payload {
  static let byteCount = 16

  var offset: UInt64
  var region: UInt32
  /// Bytes of data.
  var count: UInt32

  init(offset: UInt64, region: UInt32, count: UInt32) {
    (self.offset, self.region, self.count) = (offset, region, count)
  }

  init(from reader: inout PayloadReader) throws(ProtocolError) {
    offset = try reader.take(UInt64.self)
    region = try reader.take(UInt32.self)
    count = try reader.take(UInt32.self)
  }

  func write(to writer: inout PayloadWriter) {
    writer.put(offset)
    writer.put(region)
    writer.put(count)
  }
}
