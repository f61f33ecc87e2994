internal import DMA
internal import Examination
internal import HostIO

/// A connection whose client maps its memory for the device.
final class Session {
  let context: CheckContext
  let connection: Connection
  var memory: ClientMemory { connection.memory }

  init(_ context: CheckContext, _ connection: Connection) {
    self.context = context
    self.connection = connection
  }

  /// Where there is a descriptor to send with a mapping.
  enum Backing {
    case file, nothing
    case other(Int32)
  }

  /// Asks for a mapping, right or wrong.
  func tryMap(
    _ address: UInt64, _ size: UInt64, offset: UInt64 = 0, flags: UInt32 = MapFlags.both, _ backing: Backing = .file
  ) throws(Finding) -> Reaction {
    let descriptors: [Int32] =
      switch backing {
      case .file: [memory.descriptor]
      case .nothing: []
      case .other(let descriptor): [descriptor]
      }
    let window = ClientMemory.Window(address: address, size: size, offset: offset, flags: flags)
    // Before the server can know of it, as it may ask at once.
    memory.open(window)
    let reaction = try connection.provoke(
      .mapDMA, Wire.map(address, size, offset: offset, flags: flags), descriptors: descriptors)
    if case .answered = reaction {} else { memory.close(address, 1) }
    return reaction
  }

  /// Makes a mapping that has to be made.
  func map(
    _ address: UInt64, _ size: UInt64, offset: UInt64 = 0, flags: UInt32 = MapFlags.both, _ backing: Backing = .file
  ) throws(Finding) {
    switch try tryMap(address, size, offset: offset, flags: flags, backing) {
    case .answered(let payload):
      try expect(payload.isEmpty, "the reply to DMA_MAP has a payload of \(payload.count) bytes")
    case .refused(let error):
      throw .broken("a mapping of \(size) bytes at \(hex(address)) was refused: \(error)")
    case .closed: throw .broken("the connection ended at a mapping of \(size) bytes at \(hex(address))")
    }
  }

  /// Asks for the end of what is mapped in a range. From the reply on the server may not ask for it any more.
  func tryUnmap(_ address: UInt64, _ size: UInt64, flags: UInt32 = 0) throws(Finding) -> Reaction {
    let reaction = try connection.provoke(.unmapDMA, Wire.unmap(address, size, flags: flags))
    if case .answered = reaction {
      if flags & MapFlags.everything != 0 { memory.closeAll() } else { memory.close(address, size) }
    }
    return reaction
  }

  /// Ends a mapping that is there.
  func unmap(_ address: UInt64, _ size: UInt64) throws(Finding) {
    switch try tryUnmap(address, size) {
    case .answered(let payload):
      try expect(
        payload.count >= 24 && Wire.long(payload, 8) == address && Wire.long(payload, 16) == size,
        "the reply to DMA_UNMAP does not repeat the range")
    case .refused(let error): throw .broken("the end of a mapping was refused: \(error)")
    case .closed: throw .broken("the connection ended at DMA_UNMAP")
    }
  }

  /// Whether something is mapped in a range: the server refuses another mapping there.
  func isMapped(_ address: UInt64, _ size: UInt64) throws(Finding) -> Bool {
    let reaction = try connection.provoke(.mapDMA, Wire.map(address, size), descriptors: [memory.descriptor])
    return reaction == .refused(.fileExists)
  }

  /// Makes a mapping that is to be looked for later with ``isMapped(_:_:)``.
  func mapVisibly(_ address: UInt64, _ size: UInt64) throws(Finding) {
    try map(address, size)
    guard try isMapped(address + 4096, 4096) else {
      throw .notChecked("what is mapped cannot be seen, as another mapping over it is not refused (map-overlap)")
    }
  }

  // MARK: Regions

  /// Bytes of a region, which are there.
  func read(_ region: UInt32, _ offset: UInt64, _ count: UInt32) throws(Finding) -> [UInt8] {
    let payload = try connection.ask(.readRegion, Wire.access(region, offset, count))
    try expect(
      payload.count == 16 + Int(count),
      "REGION_READ of \(count) bytes brought a payload of \(payload.count) bytes, not \(16 + count)")
    try expect(
      Array(payload.prefix(16)) == Wire.access(region, offset, count),
      "the reply to REGION_READ names another access than the command")
    return Array(payload.dropFirst(16))
  }

  func configuration(_ offset: UInt64, _ width: UInt32) throws(Finding) -> UInt32 {
    try read(Part.configuration, offset, width).reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }

  /// Writes to a region, and takes the reply.
  func write(_ region: UInt32, _ offset: UInt64, _ bytes: [UInt8]) throws(Finding) {
    let access = Wire.access(region, offset, UInt32(bytes.count))
    let payload = try connection.ask(.writeRegion, access + bytes)
    try expect(payload == access, "the reply to REGION_WRITE does not repeat the access")
  }

  /// The command register, which every PCI device has and a client may write.
  static let command: UInt64 = 4
}
