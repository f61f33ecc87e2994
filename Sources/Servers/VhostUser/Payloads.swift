public import SocketMessages

/// A virtqueue and a number: its size, an index, or on and off.
public struct VringState: Payload {
  /// The virtqueue.
  public var index: UInt32
  /// What the number means depends on the message.
  public var number: UInt32

  /// State `number` of virtqueue `index`.
  public init(index: UInt32, number: UInt32) {
    self.index = index
    self.number = number
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    index = try reader.take(UInt32.self)
    number = try reader.take(UInt32.self)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(index)
    writer.put(number)
  }
}

/// Where a virtqueue's three areas are. `RingAddress` says in which address space.
public struct VringAddress: Payload {
  /// The virtqueue.
  public var index: UInt32
  /// Bit 0 (``logUsed``): log writes to the device area.
  public var flags: UInt32
  /// The descriptor area (§2.7.5, §2.8.6).
  public var descriptorArea: UInt64
  /// The device area: the used ring, or the device event suppression structure.
  public var deviceArea: UInt64
  /// The driver area: the available ring, or the driver event suppression structure.
  public var driverArea: UInt64
  /// The guest-physical address by which writes to the device area are logged.
  public var log: UInt64

  /// `VHOST_VRING_F_LOG`.
  public static let logUsed: UInt32 = 1

  /// Addresses of virtqueue `index`.
  public init(
    index: UInt32, flags: UInt32 = 0, descriptorArea: UInt64, driverArea: UInt64, deviceArea: UInt64, log: UInt64 = 0
  ) {
    self.index = index
    self.flags = flags
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
    self.log = log
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    index = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    descriptorArea = try reader.take(UInt64.self)
    deviceArea = try reader.take(UInt64.self)
    driverArea = try reader.take(UInt64.self)
    log = try reader.take(UInt64.self)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(index)
    writer.put(flags)
    writer.put(descriptorArea)
    writer.put(deviceArea)
    writer.put(driverArea)
    writer.put(log)
  }
}

/// Which virtqueue a kick, call or error descriptor belongs to, and whether one came along.
public struct VringDescriptor: Payload {
  /// The virtqueue, 0 to 255.
  public var index: UInt8
  /// False if the message carries no descriptor: the virtqueue is polled, or not signalled.
  public var hasDescriptor: Bool

  /// A descriptor for virtqueue `index`, or the news that there is none.
  public init(index: UInt8, hasDescriptor: Bool) {
    self.index = index
    self.hasDescriptor = hasDescriptor
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    let word = try reader.take(UInt64.self)
    index = UInt8(truncatingIfNeeded: word)
    hasDescriptor = word & 0x100 == 0
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(UInt64(index) | (hasDescriptor ? 0 : 0x100))
  }
}

/// A piece of the guest's memory: where the guest sees it, where the front-end does, and where it starts in its file.
public struct RegionDescription: Payload {
  /// The guest-physical address of the first byte.
  public var guestAddress: UInt64
  /// Bytes.
  public var size: UInt64
  /// The first byte in the front-end's own address space (with GPA_ADDRESSES: the guest address once more).
  public var frontendAddress: UInt64
  /// The first byte in the file that comes along.
  public var offset: UInt64

  /// A region of `size` bytes.
  public init(guestAddress: UInt64, size: UInt64, frontendAddress: UInt64, offset: UInt64) {
    self.guestAddress = guestAddress
    self.size = size
    self.frontendAddress = frontendAddress
    self.offset = offset
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    guestAddress = try reader.take(UInt64.self)
    size = try reader.take(UInt64.self)
    frontendAddress = try reader.take(UInt64.self)
    offset = try reader.take(UInt64.self)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(guestAddress)
    writer.put(size)
    writer.put(frontendAddress)
    writer.put(offset)
  }
}

/// One region, behind eight bytes of padding: ADD_MEM_REG and REM_MEM_REG.
package struct SingleRegion: Payload {
  package var region: RegionDescription

  package init(_ region: RegionDescription) { self.region = region }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    _ = try reader.take(UInt64.self)
    region = try RegionDescription(from: &reader)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(UInt64(0))
    region.write(to: &writer)
  }
}

/// The regions of SET_MEM_TABLE: a count, four bytes of padding, the regions.
package struct RegionTable: Payload {
  package static let limit = 8
  package var regions: [RegionDescription]

  package init(_ regions: [RegionDescription]) { self.regions = regions }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    let count = try reader.take(UInt32.self)
    _ = try reader.take(UInt32.self)
    guard count <= Self.limit else {
      throw ProtocolError("SET_MEM_TABLE", "\(count) regions are more than \(Self.limit)")
    }
    regions = []
    for _ in 0..<count { regions.append(try RegionDescription(from: &reader)) }
    // Some front-ends send room for eight regions always.
    _ = try reader.take(count: min(reader.remaining, (Self.limit - Int(count)) * 32))
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(UInt32(truncatingIfNeeded: regions.count))
    writer.put(UInt32(0))
    for region in regions { region.write(to: &writer) }
  }
}

/// The dirty log's place in the file that comes along.
public struct LogArea: Payload {
  /// Bytes; each holds the bits of eight pages of 4096 bytes.
  public var size: UInt64
  /// The log's first byte in the file: the pages from guest-physical address 0 on.
  public var offset: UInt64

  /// A log of `size` bytes at `offset`.
  public init(size: UInt64, offset: UInt64) {
    self.size = size
    self.offset = offset
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    size = try reader.take(UInt64.self)
    offset = try reader.take(UInt64.self)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(size)
    writer.put(offset)
  }
}

/// Some bytes of the device's configuration space (§2.5).
public struct ConfigurationBytes: Payload {
  /// The first byte's place in the configuration space.
  public var offset: UInt32
  /// Bit 0 (``migration``): the write restores a migrated device.
  public var flags: UInt32
  /// The bytes; in a GET_CONFIG request their values mean nothing.
  public var bytes: [UInt8]

  /// SET_CONFIG on a migration's destination: fields that are otherwise read-only may change.
  public static let migration: UInt32 = 1
  /// The largest configuration space that peers agree on.
  public static let limit = 256

  /// `bytes` at `offset`.
  public init(offset: UInt32, flags: UInt32 = 0, bytes: [UInt8]) {
    self.offset = offset
    self.flags = flags
    self.bytes = bytes
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    offset = try reader.take(UInt32.self)
    let size = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    guard size <= Self.limit, offset <= Self.limit, Int(offset) + Int(size) <= Self.limit else {
      throw ProtocolError("GET_CONFIG or SET_CONFIG", "\(size) bytes at \(offset) are not inside \(Self.limit) bytes")
    }
    bytes = try reader.take(count: Int(size))
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(offset)
    writer.put(UInt32(truncatingIfNeeded: bytes.count))
    writer.put(flags)
    writer.put(bytes)
  }
}

/// The memory that remembers requests in flight across a restart of the back-end.
public struct InflightDescription: Payload {
  /// Bytes, all virtqueues together.
  public var mmapSize: UInt64
  /// The first byte in the file that comes along.
  public var mmapOffset: UInt64
  /// Virtqueues.
  public var queueCount: UInt16
  /// Descriptors in each virtqueue.
  public var queueSize: UInt16

  /// Bytes of padding a C structure has behind its fields.
  package static let padding = 4

  /// Memory of `mmapSize` bytes for `queueCount` virtqueues of `queueSize` descriptors.
  public init(mmapSize: UInt64, mmapOffset: UInt64, queueCount: UInt16, queueSize: UInt16) {
    self.mmapSize = mmapSize
    self.mmapOffset = mmapOffset
    self.queueCount = queueCount
    self.queueSize = queueSize
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    mmapSize = try reader.take(UInt64.self)
    mmapOffset = try reader.take(UInt64.self)
    queueCount = try reader.take(UInt16.self)
    queueSize = try reader.take(UInt16.self)
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(mmapSize)
    writer.put(mmapOffset)
    writer.put(queueCount)
    writer.put(queueSize)
    writer.pad(Self.padding)
  }
}

/// Which way the device's state travels, and when.
public struct DeviceStateTransfer: Payload {
  /// The way of the bytes.
  public enum Direction: UInt32, Sendable {
    /// From the back-end to the front-end, on a migration's source.
    case save = 0
    /// From the front-end to the back-end, on a migration's destination.
    case load = 1
  }

  /// The way of the bytes.
  public var direction: Direction
  /// What state the machine is in. Only 0, "stopped", is defined.
  public var phase: UInt32

  /// Bit 8 of the answer: no descriptor comes with it, the front-end's own is used.
  package static let noDescriptor: UInt64 = 1 << 8

  /// A transfer of a stopped machine's device.
  public init(direction: Direction, phase: UInt32 = 0) {
    self.direction = direction
    self.phase = phase
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    let way = try reader.take(UInt32.self)
    guard let direction = Direction(rawValue: way) else {
      throw ProtocolError("SET_DEVICE_STATE_FD", "direction \(way) is neither save nor load")
    }
    self.direction = direction
    phase = try reader.take(UInt32.self)
    guard phase == 0 else { throw ProtocolError("SET_DEVICE_STATE_FD", "phase \(phase) is not \"stopped\"") }
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(direction.rawValue)
    writer.put(phase)
  }
}
