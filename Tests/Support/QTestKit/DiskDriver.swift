/// Which ring a driver uses.
public enum RingFormat: String, CaseIterable, Sendable { case split, packed }

/// A block driver with no kernel around it: negotiation, one virtqueue, requests (§5.2), each descriptor where the test
/// wants it.
public final class DiskDriver {
  /// Request types (§5.2.6).
  public enum Request {
    public static let read: UInt32 = 0
    public static let write: UInt32 = 1
    public static let flush: UInt32 = 4
    public static let identify: UInt32 = 8
    public static let discard: UInt32 = 11
    public static let writeZeroes: UInt32 = 13
  }

  /// How a request ended: the device's status byte (0 well, 1 I/O error, 2 unsupported; 0xff untouched) and the bytes
  /// it claims to have written.
  public struct Completion: Hashable, Sendable {
    public var status: UInt8
    public var written: UInt32

    public init(status: UInt8, written: UInt32) {
      self.status = status
      self.written = written
    }
  }

  public let function: VirtioFunction
  public let memory: DeviceMemory
  public let queue: UInt16
  /// The bits that were negotiated.
  public private(set) var features: UInt64 = 0
  /// The ring, once started.
  public private(set) var ring: any LiteralRing
  /// Whether the WRITE flag of used descriptors is checked against their length (§2.8.4); QEMU's own device never sets
  /// it.
  public var insistsOnWriteMark = false
  private let notification: UInt64
  private let headers: UInt64
  private let statuses: UInt64
  private let tables: UInt64
  private let slots: Int
  private var pending: [UInt16: (slot: Int, status: UInt64)] = [:]
  private var freeSlots: [Int]
  private var done: [UInt16: Completion] = [:]
  private static let tableSize: UInt64 = 4352  // 272 descriptors; every other table crosses a page

  /// What a driver of the day accepts if it is offered.
  public static let usual: UInt64 =
    Feature.version1 | Feature.accessPlatform | Feature.indirect | Feature.eventIndex | Feature.flush | Feature.segMax
    | Feature.blockSize
    | Feature.discard | Feature.writeZeroes | Feature.multiQueue | Feature.configWCE

  /// Resets the device, negotiates, sets up one queue and sets DRIVER_OK.
  /// - `wanted`: accepted as far as it is offered; the packed bit comes from `format`.
  /// - `usedOffset`: where in its page a split ring's device area starts, a multiple of 4. At 0, entry 511 crosses into
  ///   the next page;
  ///   QEMU's own device then loses the half of it behind an IOMMU.
  public convenience init(
    _ function: VirtioFunction, _ memory: DeviceMemory, _ format: RingFormat = .split, size: UInt16 = 16,
    wanted: UInt64 = usual,
    usedOffset: Int = 0
  ) throws(QTestError) {
    let features = try Self.negotiate(function, wanted & ~Feature.packed | (format == .packed ? Feature.packed : 0))
    if format == .packed, features & Feature.packed == 0 {
      throw .missing("the packed ring among the offered features")
    }
    let eventIndex = features & Feature.eventIndex != 0
    let ring: any LiteralRing =
      format == .packed
      ? try LiteralPackedRing(memory, size: size, eventIndex: eventIndex)
      : try LiteralSplitRing(memory, size: size, eventIndex: eventIndex, usedOffset: usedOffset)
    try self.init(function, memory, queue: 0, ring: ring, features: features)
    try function.setStatus(0xf)
  }

  /// A driver's state for one queue of a device that is negotiated already; the caller sets DRIVER_OK when all queues
  /// are there.
  /// - `vector`: the MSI-X vector of the queue's notifications; 0xffff for none.
  public init(
    _ function: VirtioFunction, _ memory: DeviceMemory, queue: UInt16, ring: any LiteralRing, features: UInt64,
    vector: UInt16 = 0xffff
  ) throws(QTestError) {
    self.function = function
    self.memory = memory
    self.queue = queue
    self.ring = ring
    self.features = features
    slots = max(Int(ring.size), 1)
    freeSlots = (0..<slots).reversed()
    headers = try memory.allocate(slots * 16, .read)
    statuses = try memory.allocate(slots)
    tables =
      memory.table == nil
      ? try memory.allocate(slots * Int(Self.tableSize)) : memory.reserve(slots * Int(Self.tableSize) / 4096 + 1)
    let areas = ring.areas
    try function.enableQueue(
      queue, size: ring.size, descriptor: areas.descriptor, driver: areas.driver, device: areas.device, vector: vector)
    notification = try function.notificationAddress(queue)
  }

  /// Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK (§3.1.1).
  /// - Returns: the bits that were accepted.
  /// - Throws: `.refused` if FEATURES_OK did not stick.
  public static func negotiate(_ function: VirtioFunction, _ wanted: UInt64) throws(QTestError) -> UInt64 {
    try function.reset()
    try function.setStatus(1)
    try function.setStatus(3)
    let features = try function.offeredFeatures() & wanted
    try function.acceptFeatures(features)
    try function.setStatus(0xb)
    let status = try function.status()
    guard status & VirtioFunction.Status.featuresOK != 0 else {
      throw .refused(command: "FEATURES_OK", answer: "status 0x\(String(status, radix: 16))")
    }
    return features
  }

  /// Makes a request available without notifying.
  /// - `joined`: the last byte of the last piece is the status byte, so that two descriptors make a request; off, the
  ///   status has a descriptor.
  /// - Returns: its number, for `wait` and `poll`.
  public func add(
    _ type: UInt32, sector: Int = 0, _ data: [Piece] = [], indirect: Bool = false, joined: Bool = false
  ) throws(QTestError) -> UInt16 {
    guard let slot = freeSlots.popLast() else { throw .missing("a free request slot") }
    let header = headers + UInt64(slot) * 16
    let status =
      joined ? data[data.count - 1].address + UInt64(data[data.count - 1].count) - 1 : statuses + UInt64(slot)
    try memory.write(
      littleEndian(type) + littleEndian(0 as UInt32) + littleEndian(UInt64(bitPattern: Int64(sector))), at: header)
    try memory.store(status, 0xff as UInt8)
    let chain = [Piece(header, 16, writable: false)] + data + (joined ? [] : [Piece(status, 1, writable: true)])
    let id = try ring.add(chain, indirect: indirect ? try tableMemory(slot, count: chain.count) : nil)
    pending[id] = (slot, status)
    return id
  }

  /// Memory of an indirect table: pages that are not adjacent, and only readable for the device.
  private func tableMemory(_ slot: Int, count: Int) throws(QTestError) -> UInt64 {
    let table = tables + UInt64(slot) * Self.tableSize
    guard count * 16 <= Int(Self.tableSize) else { throw .missing("room for \(count) descriptors in a table") }
    if memory.table != nil {
      var page = table & ~0xfff
      while page < table + Self.tableSize {
        if (try? memory.frame(of: page)) == nil { try memory.map(page, to: memory.qemu.frames.takeScattered(1), .read) }
        page += 4096
      }
    }
    return table
  }

  /// Notifies the device if it wants to be.
  public func notify() throws(QTestError) {
    if try ring.needsNotification() { try memory.qemu.store(notification, queue) }
  }

  /// Notifies the device whether it wants to be or not.
  public func notifyAlways() throws(QTestError) { try memory.qemu.store(notification, queue) }

  /// The completion of a request if it is there.
  public func poll(_ id: UInt16) throws(QTestError) -> Completion? {
    while let used = try ring.takeUsed() {
      guard let request = pending.removeValue(forKey: used.id) else {
        throw .refused(command: "used", answer: "request \(used.id) was not made")
      }
      if let marked = used.isMarkedWritten, insistsOnWriteMark, marked != (used.written > 0) {
        throw .refused(command: "used descriptor", answer: "\(used.written) bytes written, WRITE flag \(marked)")
      }
      done[used.id] = Completion(status: try memory.load(request.status), written: used.written)
      freeSlots.append(request.slot)
    }
    return done.removeValue(forKey: id)
  }

  /// Waits for a request's completion.
  public func wait(_ id: UInt16, seconds: Double = 10) throws(QTestError) -> Completion {
    var completion: Completion?
    do {
      try memory.qemu.wait(for: "completion", seconds: seconds) { () throws(QTestError) in
        completion = try poll(id)
        return completion != nil
      }
    } catch .timedOut {
      throw .timedOut(
        waitingFor:
          "completion of request \(id); device status 0x\(String(try function.status(), radix: 16)); QEMU said: \(memory.qemu.said)"
      )
    }
    return completion ?? Completion(status: 0xff, written: 0)
  }

  /// A whole request: available, notified, waited for.
  public func run(
    _ type: UInt32, sector: Int = 0, _ data: [Piece] = [], indirect: Bool = false
  ) throws(QTestError) -> Completion {
    let id = try add(type, sector: sector, data, indirect: indirect)
    try notify()
    return try wait(id)
  }
}
