public import DMA
import DriverDMA
public import VhostUserFrontend
internal import Virtio
public import VirtioDrivers

/// Why a client could not do its work.
public enum ClientError: Error, Sendable {
  case frontend(FrontendError)
  case queue(DriverQueueError)
  case memory
  case timedOut
  /// A request ended with this status.
  case status(UInt8)
}

/// What a request does (§5.2.6): the numbers of the `type` field.
public enum DiskOperation: UInt32, Sendable {
  case read = 0
  case write = 1
  case flush = 4
  case identify = 8
  case discard = 11
  case writeZeroes = 13
}

/// Where a client's things are in guest memory, from one base address on: rings, headers and status bytes, data.
public struct BlockClientPlace: Sendable {
  public var base: GuestAddress
  public var queueSize: UInt16
  public var slots: Int
  public var slotBytes: Int

  /// Room for `slots` requests of `slotBytes` bytes at a time.
  public init(base: GuestAddress, queueSize: UInt16, slots: Int, slotBytes: Int) {
    self.base = base
    self.queueSize = queueSize
    self.slots = slots
    self.slotBytes = slotBytes
  }

  private static func pages(_ bytes: Int) -> UInt64 { UInt64((bytes + 4095) / 4096 * 4096) }
  var descriptorArea: GuestAddress { base }
  var driverArea: GuestAddress { GuestAddress(base.rawValue + Self.pages(16 * Int(queueSize))) }
  var deviceArea: GuestAddress { GuestAddress(driverArea.rawValue + Self.pages(6 + 2 * Int(queueSize))) }
  /// 64 bytes a slot: the header at 0, the status at 32.
  var headers: GuestAddress { GuestAddress(deviceArea.rawValue + Self.pages(6 + 8 * Int(queueSize))) }
  var tables: GuestAddress { GuestAddress(headers.rawValue + Self.pages(64 * slots)) }
  var data: GuestAddress { GuestAddress(tables.rawValue + Self.pages(64 * Int(queueSize))) }
  /// The first byte after it all.
  public var end: GuestAddress { GuestAddress(data.rawValue + Self.pages(slots * slotBytes)) }
}

/// A driver of one virtio-blk queue at the other end of a vhost-user connection. One thread uses it.
public struct BlockClient: ~Copyable {
  public let place: BlockClientPlace
  public let events: FrontendQueue
  private var queue: DriverQueue
  private let headers: RingMemory
  private let memory: GuestMemory
  /// Device address minus guest address: 0 without an IOMMU.
  private let shift: UInt64
  private let isIndirect: Bool
  /// Which slot the buffer with an ID is for.
  private var slotOf: [UInt16]
  private var free: [UInt16]

  /// Starts queue `index`. `shift` is what to add to a guest address to get the device address that leads to it.
  public init(
    _ frontend: Frontend, queue index: Int, place: BlockClientPlace, shift: UInt64 = 0, indirect: Bool = false
  ) throws(ClientError) {
    let features = frontend.features
    let guest = frontend.memory.guest
    func device(_ address: GuestAddress) -> DMAAddress { DMAAddress(address.rawValue &+ shift) }
    let layout = QueueLayout(
      size: place.queueSize, descriptorArea: device(place.descriptorArea), driverArea: device(place.driverArea),
      deviceArea: device(place.deviceArea))
    guard
      let memory = DriverQueueMemory(
        guest, size: place.queueSize, features: features, descriptorArea: place.descriptorArea,
        driverArea: place.driverArea,
        deviceArea: place.deviceArea, tables: place.tables, tableAddress: device(place.tables), tableCapacity: 4),
      let headers = guest.cells(at: place.headers, byteCount: 64 * place.slots)
    else { throw .memory }
    let queue = try Self.makeQueue(layout, features, memory)
    let events: FrontendQueue
    do throws(FrontendError) { events = try frontend.startQueue(index, layout: layout) } catch {
      throw .frontend(error)
    }
    self.queue = queue
    self.events = events
    self.place = place
    self.headers = headers
    self.memory = guest
    self.shift = shift
    isIndirect = indirect && features.contains(.indirectDescriptors)
    slotOf = [UInt16](repeating: 0, count: Int(place.queueSize))
    free = (0..<UInt16(place.slots)).reversed()
  }

  private static func makeQueue(
    _ layout: QueueLayout, _ features: Features, _ memory: consuming DriverQueueMemory
  ) throws(ClientError) -> DriverQueue {
    do throws(DriverQueueError) {
      return try DriverQueue(layout: layout, features: features, memory: memory)
    } catch {
      throw .queue(error)
    }
  }

  /// Slots nothing is using.
  public var freeSlots: Int { free.count }
  /// Requests the device has.
  public var outstanding: Int { Int(queue.outstanding) }

  /// Puts a request into the ring; ``publish()`` makes it visible. Data is in the slot's memory. nil if no slot is
  /// free.
  public mutating func add(_ operation: DiskOperation, sector: UInt64, count: Int) throws(ClientError) -> Int? {
    guard let slot = free.popLast() else { return nil }
    let at = Int(slot) &* 64
    headers.store64(UInt64(operation.rawValue).littleEndian, at: at)
    headers.store64(sector.littleEndian, at: at &+ 8)
    headers.store16(0xffff, at: at &+ 32)
    let header = DriverBuffer(DMAAddress(place.headers.rawValue &+ UInt64(at) &+ shift), count: 16)
    let status = DriverBuffer(DMAAddress(place.headers.rawValue &+ UInt64(at) &+ 32 &+ shift), count: 1)
    let data = DriverBuffer(
      DMAAddress(place.data.rawValue &+ UInt64(Int(slot) &* place.slotBytes) &+ shift),
      count: UInt32(truncatingIfNeeded: count))
    let id: UInt16
    do throws(DriverQueueError) {
      switch operation {
      case .read, .identify:
        let readable: InlineArray<1, DriverBuffer> = [header]
        let writable: InlineArray<2, DriverBuffer> = [data, status]
        id = try queue.add(readable: readable.span, writable: writable.span, indirect: isIndirect)
      case .write, .discard, .writeZeroes:
        let readable: InlineArray<2, DriverBuffer> = [header, data]
        let writable: InlineArray<1, DriverBuffer> = [status]
        id = try queue.add(readable: readable.span, writable: writable.span, indirect: isIndirect)
      case .flush:
        let readable: InlineArray<1, DriverBuffer> = [header]
        let writable: InlineArray<1, DriverBuffer> = [status]
        id = try queue.add(readable: readable.span, writable: writable.span, indirect: isIndirect)
      }
    } catch {
      free.append(slot)
      throw .queue(error)
    }
    slotOf[Int(id)] = slot
    return Int(slot)
  }

  /// Makes what was added available, and kicks if the device wants it.
  public mutating func publish() { if queue.publish() { events.kick() } }

  /// Makes what was added available and says whether the device wants a kick, which is left to the caller.
  public mutating func publishOnly() -> Bool { queue.publish() }

  /// A request that is done: its slot and status byte. The slot is free again.
  public mutating func reap() throws(ClientError) -> (slot: Int, status: UInt8)? {
    let used: UsedBuffer?
    do throws(DriverQueueError) { used = try queue.reap() } catch { throw .queue(error) }
    guard let used else { return nil }
    let slot = slotOf[Int(used.id)]
    free.append(slot)
    return (Int(slot), UInt8(truncatingIfNeeded: headers.load16(at: Int(slot) &* 64 &+ 32).littleEndian))
  }

  /// Asks for a call after about `count` more requests. True when something is done already.
  public mutating func armCall(after count: UInt16 = 0) -> Bool { queue.armCall(after: count) }
  /// Suppresses calls.
  public mutating func disarmCall() { queue.disarmCall() }

  /// The next request that is done, waited for.
  public mutating func wait(timeout: Duration = .seconds(10)) throws(ClientError) -> (slot: Int, status: UInt8) {
    let end = ContinuousClock.now + timeout
    while true {
      if let done = try reap() { return done }
      if queue.armCall() { continue }
      guard .now < end else { throw .timedOut }
      _ = events.waitForCall(timeout: end - .now)
    }
  }

  /// Bytes of a slot's data.
  public func data(_ slot: Int, count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = memory.copy(from: GuestAddress(place.data.rawValue + UInt64(slot * place.slotBytes)), into: &span)
    return bytes
  }

  /// Sets the data of the slot that the next ``add(_:sector:count:)`` will take.
  public mutating func prepare(_ bytes: [UInt8]) {
    guard let slot = free.last else { return }
    _ = memory.copy(bytes.span, to: GuestAddress(place.data.rawValue + UInt64(Int(slot) * place.slotBytes)))
  }

  // One request at a time

  /// Reads `count` bytes, and waits.
  public mutating func read(sector: UInt64, count: Int) throws(ClientError) -> [UInt8] {
    guard try add(.read, sector: sector, count: count) != nil else { throw .memory }
    publish()
    let done = try wait()
    guard done.status == 0 else { throw .status(done.status) }
    return data(done.slot, count: count)
  }

  /// Writes `bytes`, and waits.
  public mutating func write(sector: UInt64, _ bytes: [UInt8]) throws(ClientError) {
    prepare(bytes)
    guard try add(.write, sector: sector, count: bytes.count) != nil else { throw .memory }
    publish()
    let done = try wait()
    guard done.status == 0 else { throw .status(done.status) }
  }

  /// Flushes, and waits.
  public mutating func flush() throws(ClientError) {
    guard try add(.flush, sector: 0, count: 0) != nil else { throw .memory }
    publish()
    let done = try wait()
    guard done.status == 0 else { throw .status(done.status) }
  }
}
