/// A packed virtqueue as §2.8 draws it: one descriptor ring both sides write, and two event suppression structures.
public final class LiteralPackedRing: LiteralRing {
  public let size: UInt16
  public let areas: (descriptor: UInt64, driver: UInt64, device: UInt64)
  private let memory: DeviceMemory
  private let eventIndex: Bool
  private var next: UInt16 = 0
  private var wrap = true
  private var usedNext: UInt16 = 0
  private var usedWrap = true
  private var notifiedNext: UInt16 = 0
  private var added: UInt16 = 0
  private var freeIDs: [UInt16]
  private var chains: [UInt16: UInt16] = [:]

  /// Allocates the three areas with only the permissions the device needs (R052).
  public init(_ memory: DeviceMemory, size: UInt16, eventIndex: Bool) throws(QTestError) {
    self.memory = memory
    self.size = size
    self.eventIndex = eventIndex
    areas = (try memory.allocate(16 * Int(size), .both), try memory.allocate(4, .read), try memory.allocate(4, .both))
    freeIDs = (0..<size).reversed()
  }

  public var free: Int { Int(size) - chains.values.reduce(0) { $0 + Int($1) } }

  public func add(_ chain: [Piece], indirect: UInt64?) throws(QTestError) -> UInt16 {
    guard !chain.isEmpty, free >= (indirect == nil ? chain.count : 1), let id = freeIDs.popLast() else {
      throw .missing("\(chain.count) free descriptors of \(free)")
    }
    var descriptors: [(bytes: [UInt8], flags: UInt16)] = []
    if let indirect {
      var table: [UInt8] = []
      // In a table only WRITE counts; order is the chain (§2.8.7).
      for piece in chain { table += body(piece, id: 0) + littleEndian(UInt16(piece.isWritable ? 2 : 0)) }
      try memory.write(table, at: indirect)
      descriptors = [(littleEndian(indirect) + littleEndian(UInt32(table.count)) + littleEndian(id), 4)]
    } else {
      for (index, piece) in chain.enumerated() {
        descriptors.append((body(piece, id: id), (index + 1 < chain.count ? 1 : 0) | (piece.isWritable ? 2 : 0)))
      }
    }
    // The first descriptor's flags go last: they make the whole chain available.
    let first = next
    var firstFlags: UInt16 = 0
    for (index, descriptor) in descriptors.enumerated() {
      let flags = descriptor.flags | (wrap ? 1 << 7 : 1 << 15)
      let place = areas.descriptor + 16 * UInt64(next)
      try memory.write(descriptor.bytes, at: place)
      if index == 0 { firstFlags = flags } else { try memory.store(place + 14, flags) }
      next += 1
      if next == size {
        next = 0
        wrap.toggle()
      }
    }
    try memory.store(areas.descriptor + 16 * UInt64(first) + 14, firstFlags)
    added += UInt16(descriptors.count)
    chains[id] = UInt16(descriptors.count)
    return id
  }

  private func body(_ piece: Piece, id: UInt16) -> [UInt8] {
    littleEndian(piece.address) + littleEndian(piece.count) + littleEndian(id)
  }

  public func takeUsed() throws(QTestError) -> Used? {
    let place = areas.descriptor + 16 * UInt64(usedNext)
    let flags = try memory.load(place + 14, as: UInt16.self)
    guard (flags >> 7 & 1 != 0) == usedWrap, (flags >> 15 & 1 != 0) == usedWrap else { return nil }
    let entry = try memory.read(place, count: 14)
    let id = integer(entry[12..<14], as: UInt16.self)
    guard let count = chains.removeValue(forKey: id) else {
      throw .refused(command: "used descriptor", answer: "id \(id) was not available")
    }
    freeIDs.append(id)
    usedNext += count
    if usedNext >= size {
      usedNext -= size
      usedWrap.toggle()
    }
    return Used(id: id, written: integer(entry[8..<12], as: UInt32.self), isMarkedWritten: flags & 2 != 0)
  }

  public func needsNotification() throws(QTestError) -> Bool {
    defer {
      notifiedNext = next
      added = 0
    }
    guard added > 0 else { return false }
    let area = try memory.load(areas.device, as: UInt32.self)
    switch area >> 16 & 3 {
    case 0: return true
    case 1: return false
    default:
      let offset = UInt16(area & 0x7fff)
      let eventWrap = area >> 15 & 1 != 0
      // The event is a position: was it among the descriptors just added?
      let event = Int(offset) - (eventWrap != wrap ? Int(size) : 0)
      return Int(next) - event - 1 >= 0 && Int(next) - event - 1 < Int(added)
    }
  }
}
