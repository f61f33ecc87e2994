/// A split virtqueue as §2.7 draws it: descriptor table, available ring, used ring.
public final class LiteralSplitRing: LiteralRing {
  public let size: UInt16
  public let areas: (descriptor: UInt64, driver: UInt64, device: UInt64)
  private let memory: DeviceMemory
  private let eventIndex: Bool
  private var freeList: [UInt16]
  private var chains: [UInt16: [UInt16]] = [:]
  private var available: UInt16 = 0
  private var notified: UInt16 = 0
  private var usedSeen: UInt16 = 0

  /// Allocates the three areas with only the permissions the device needs: it reads the first two and writes the third
  /// (R053, R054).
  public init(
    _ memory: DeviceMemory, size: UInt16, eventIndex: Bool, usedAccess: PageAccess = .both, usedOffset: Int = 0
  ) throws(QTestError) {
    self.memory = memory
    self.size = size
    self.eventIndex = eventIndex
    areas = (
      try memory.allocate(16 * Int(size), .read), try memory.allocate(6 + 2 * Int(size), .read),
      try memory.allocate(usedOffset + 6 + 8 * Int(size), usedAccess) + UInt64(usedOffset)
    )
    freeList = (0..<size).reversed()
  }

  public var free: Int { freeList.count }

  public func add(_ chain: [Piece], indirect: UInt64?) throws(QTestError) -> UInt16 {
    let head: UInt16
    if let indirect {
      guard let slot = freeList.popLast() else { throw .missing("a free descriptor") }
      head = slot
      var table: [UInt8] = []
      for (index, piece) in chain.enumerated() {
        table += descriptor(piece, next: index + 1 < chain.count ? UInt16(index + 1) : nil)
      }
      try memory.write(table, at: indirect)
      let flags: UInt16 = 4
      try memory.write(
        littleEndian(indirect) + littleEndian(UInt32(table.count)) + littleEndian(flags) + [0, 0],
        at: areas.descriptor + 16 * UInt64(slot))
      chains[head] = [slot]
    } else {
      guard chain.count <= freeList.count, !chain.isEmpty else {
        throw .missing("\(chain.count) free descriptors of \(freeList.count)")
      }
      let slots = chain.map { _ in freeList.removeLast() }
      for (index, piece) in chain.enumerated() {
        let next = index + 1 < chain.count ? slots[index + 1] : nil
        try memory.write(descriptor(piece, next: next), at: areas.descriptor + 16 * UInt64(slots[index]))
      }
      head = slots[0]
      chains[head] = slots
    }
    try memory.store(areas.driver + 4 + 2 * UInt64(available % size), head)
    available &+= 1
    try memory.store(areas.driver + 2, available)
    return head
  }

  private func descriptor(_ piece: Piece, next: UInt16?) -> [UInt8] {
    let flags: UInt16 = (next == nil ? 0 : 1) | (piece.isWritable ? 2 : 0)
    return littleEndian(piece.address) + littleEndian(piece.count) + littleEndian(flags) + littleEndian(next ?? 0)
  }

  public func takeUsed() throws(QTestError) -> Used? {
    guard try memory.load(areas.device + 2, as: UInt16.self) != usedSeen else { return nil }
    let entry = try memory.read(areas.device + 4 + 8 * UInt64(usedSeen % size), count: 8)
    let id = integer(entry[0..<4], as: UInt32.self)
    guard id < UInt32(size), let slots = chains.removeValue(forKey: UInt16(id)) else {
      throw .refused(command: "used ring entry", answer: "id \(id) was not available")
    }
    freeList += slots.reversed()
    usedSeen &+= 1
    return Used(id: UInt16(id), written: integer(entry[4..<8], as: UInt32.self), isMarkedWritten: nil)
  }

  public func needsNotification() throws(QTestError) -> Bool {
    defer { notified = available }
    guard available != notified else { return false }
    guard eventIndex else { return try memory.load(areas.device, as: UInt16.self) & 1 == 0 }
    let event = try memory.load(areas.device + 4 + 8 * UInt64(size), as: UInt16.self)
    return available &- event &- 1 < available &- notified
  }
}
