internal import SocketMessages

/// The commands of vfio-user, as its document numbers them.
///
/// What follows here is written down once more, and not shared with the module `VfioUser`: a mistake in the server's
/// layouts must not be made by the client that looks for it.
enum Command: UInt16 {
  case version = 1
  case mapDMA, unmapDMA
  case getInfo, getRegionInfo, getRegionDescriptors, getInterruptInfo, setInterrupts
  case readRegion, writeRegion
  case readDMA, writeDMA
  case reset
  case writeRegions = 15
  case feature, readMigrationData, writeMigrationData

  /// As the document calls it.
  var name: String {
    switch self {
    case .version: "VERSION"
    case .mapDMA: "DMA_MAP"
    case .unmapDMA: "DMA_UNMAP"
    case .getInfo: "DEVICE_GET_INFO"
    case .getRegionInfo: "DEVICE_GET_REGION_INFO"
    case .getRegionDescriptors: "DEVICE_GET_REGION_IO_FDS"
    case .getInterruptInfo: "DEVICE_GET_IRQ_INFO"
    case .setInterrupts: "DEVICE_SET_IRQS"
    case .readRegion: "REGION_READ"
    case .writeRegion: "REGION_WRITE"
    case .readDMA: "DMA_READ"
    case .writeDMA: "DMA_WRITE"
    case .reset: "DEVICE_RESET"
    case .writeRegions: "REGION_WRITE_MULTI"
    case .feature: "DEVICE_FEATURE"
    case .readMigrationData: "MIG_DATA_READ"
    case .writeMigrationData: "MIG_DATA_WRITE"
    }
  }
}

/// What precedes each message.
struct Header: FixedHeader {
  static let byteCount = 16
  static let reply: UInt32 = 1, noReply: UInt32 = 1 << 4, failed: UInt32 = 1 << 5
  /// More than this no reply to these checks has.
  private static let limit: UInt32 = 2 << 20

  var id: UInt16
  var command: UInt16
  var size: UInt32
  var flags: UInt32
  var error: UInt32

  init(id: UInt16, command: UInt16, size: UInt32, flags: UInt32, error: UInt32 = 0) {
    (self.id, self.command, self.size, self.flags, self.error) = (id, command, size, flags, error)
  }

  init(decoding bytes: [UInt8]) throws(ProtocolError) {
    var reader = PayloadReader(bytes, of: "header")
    id = try reader.take(UInt16.self)
    command = try reader.take(UInt16.self)
    size = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    error = try reader.take(UInt32.self)
    guard size >= UInt32(Self.byteCount), size <= Self.limit else {
      throw ProtocolError("header", "it says that the message has \(size) bytes")
    }
  }

  var payloadByteCount: Int { Int(size) - Self.byteCount }
  var encoded: [UInt8] {
    Wire.bytes(id) + Wire.bytes(command) + Wire.bytes(size) + Wire.bytes(flags) + Wire.bytes(error)
  }
}

/// Numbers as they are on the wire.
enum Wire {
  static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    var writer = PayloadWriter()
    writer.put(value)
    return writer.bytes
  }

  static func words(_ values: UInt32...) -> [UInt8] { values.flatMap { bytes($0) } }

  /// A number in a payload; 0 where there are not so many bytes.
  static func number<T: FixedWidthInteger>(_ payload: [UInt8], _ offset: Int, _: T.Type) -> T {
    guard offset >= 0, offset + T.bitWidth / 8 <= payload.count else { return 0 }
    var reader = PayloadReader(Array(payload[offset...].prefix(T.bitWidth / 8)), of: "payload")
    return (try? reader.take(T.self)) ?? 0
  }

  static func word(_ payload: [UInt8], _ offset: Int) -> UInt32 { number(payload, offset, UInt32.self) }
  static func long(_ payload: [UInt8], _ offset: Int) -> UInt64 { number(payload, offset, UInt64.self) }

  // MARK: Commands

  static func version(_ major: UInt16, _ minor: UInt16, _ text: String?) -> [UInt8] {
    bytes(major) + bytes(minor) + (text.map { Array($0.utf8) + [0] } ?? [])
  }

  /// The usual proposal.
  static let proposal = version(
    0, 0,
    """
    {"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,\
    "write_multiple":true}}
    """)

  static func map(_ address: UInt64, _ size: UInt64, offset: UInt64 = 0, flags: UInt32 = MapFlags.both) -> [UInt8] {
    words(32, flags) + bytes(offset) + bytes(address) + bytes(size)
  }

  static func unmap(_ address: UInt64, _ size: UInt64, flags: UInt32 = 0) -> [UInt8] {
    words(24, flags) + bytes(address) + bytes(size)
  }

  static func access(_ region: UInt32, _ offset: UInt64, _ count: UInt32) -> [UInt8] {
    bytes(offset) + words(region, count)
  }

  static func interrupts(
    _ flags: UInt32, _ index: UInt32, _ start: UInt32, _ count: UInt32, truths: [UInt8] = []
  ) -> [UInt8] {
    words(UInt32(20 + truths.count), flags, index, start, count) + truths
  }

  /// DEVICE_GET_REGION_INFO.
  static func region(_ index: UInt32, room: UInt32 = 32) -> [UInt8] {
    words(room, 0, index, 0) + bytes(UInt64(0)) + bytes(UInt64(0))
  }
}

/// Flags of DMA_MAP and DMA_UNMAP.
enum MapFlags {
  static let read: UInt32 = 1, write: UInt32 = 2, both: UInt32 = 3, byMapping: UInt32 = 4
  static let dirtyBitmap: UInt32 = 1, everything: UInt32 = 2
}

/// Flags of DEVICE_SET_IRQS.
enum SetFlags {
  static let none: UInt32 = 1, bool: UInt32 = 2, eventfd: UInt32 = 4
  static let mask: UInt32 = 8, unmask: UInt32 = 16, trigger: UInt32 = 32
}

/// The numbers that `linux/vfio.h` gives to the parts of a PCI device.
enum Part {
  static let configuration: UInt32 = 7
  static let pin: UInt32 = 0, msi: UInt32 = 1, msix: UInt32 = 2
  static let regions: UInt32 = 9, interrupts: UInt32 = 5
}

func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
