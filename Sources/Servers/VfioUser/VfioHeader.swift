package import SocketMessages

/// The commands of vfio-user that a client sends, and those that a server may send (protocol 0.0, "Commands").
public enum VfioCommand: UInt16, CaseIterable, Sendable {
  case version = 1
  case mapDMA, unmapDMA
  case getInfo, getRegionInfo, getRegionDescriptors, getInterruptInfo, setInterrupts
  case readRegion, writeRegion
  /// These two are the server's.
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

/// The sixteen bytes in front of every message of vfio-user, in the machine's byte order.
struct VfioHeader: Hashable, FixedHeader {
  /// The sender's own number for the message; a reply repeats it.
  var id: UInt16
  var command: UInt16
  /// Bytes of the whole message.
  var size: UInt32
  var flags: UInt32
  /// Of a reply with ``failed``: an error number of the system.
  var error: UInt32 = 0

  static let byteCount = 16
  /// Bits 0 to 3 of the flags: this is a reply.
  static let reply: UInt32 = 1
  /// The sender of a command wants no reply.
  static let noReply: UInt32 = 1 << 4
  /// The command failed.
  static let failed: UInt32 = 1 << 5
  /// The most data of a read or a write that either side takes (`max_data_xfer_size`, whose default this is).
  static let transferLimit = 1 << 20
  /// With room for what precedes the data.
  private static let sizeLimit = UInt32(transferLimit + 4096)

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
    guard size >= UInt32(Self.byteCount), size <= Self.sizeLimit else {
      throw ProtocolError("header", "a message of \(size) bytes is not one of \(Self.byteCount) to \(Self.sizeLimit)")
    }
  }

  var payloadByteCount: Int { Int(size) - Self.byteCount }
  var isReply: Bool { flags & 0xf == Self.reply }
  var wantsReply: Bool { flags & Self.noReply == 0 }
  var hasFailed: Bool { flags & Self.failed != 0 }

  /// A whole message.
  static func frame(
    id: UInt16, command: UInt16, flags: UInt32 = 0, error: UInt32 = 0, _ payload: [UInt8] = []
  ) -> [UInt8] {
    var writer = PayloadWriter()
    writer.put(id)
    writer.put(command)
    writer.put(UInt32(byteCount + payload.count))
    writer.put(flags)
    writer.put(error)
    writer.put(payload)
    return writer.bytes
  }
}
