import DMA
import HostIO
import Virtio

/// A device and the driver's side of one split queue of it, in guest memory of ours, driven step by step on the caller's thread.
///
/// The driver's side is written out byte by byte from §2.7, sharing no code with the device's.
final class DeviceRig {
  struct Request {
    var head: UInt16
    /// Where the device-writable pieces are, and how long.
    var writable: [(address: UInt64, count: Int)]
    /// Set when the device gave the chain back.
    var used: UInt32?
  }

  static let queueSize: UInt16 = 256
  static let descriptors: UInt64 = 0x1000
  static let available: UInt64 = 0x3000
  static let usedRing: UInt64 = 0x4000
  static let heap: UInt64 = 0x10000

  let memory: GuestMemory
  let handler: any QueueHandler
  private var queues: QueueSet
  private var next = heap
  private var freeDescriptors: [UInt16]
  private var availableIndex: UInt16 = 0
  private var usedIndex: UInt16 = 0
  private var requests: [UInt16: Request] = [:]
  private var chains: [UInt16: [UInt16]] = [:]
  private let poller: Poller
  let features: Features

  init(_ device: some VirtioDevice, features: Features? = nil, memoryBytes: Int = 64 << 20) throws {
    let negotiated = (features ?? device.features).subtracting([.ringPacked, .eventIndex, .inOrder, .notificationData])
    self.features = negotiated
    memory = try GuestMemory(byteCount: memoryBytes)
    handler = try device.makeHandler(for: 0..<1, features: negotiated)
    let layout = QueueLayout(
      size: Self.queueSize, descriptorArea: DMAAddress(Self.descriptors), driverArea: DMAAddress(Self.available),
      deviceArea: DMAAddress(Self.usedRing))
    queues = QueueSet(0..<1)
    queues.insert(try Virtqueue(index: 0, layout: layout, features: negotiated, in: PhysicalSpace(memory)))
    freeDescriptors = (0..<Self.queueSize).reversed()
    poller = try Poller()
    for one in handler.watched { try poller.add(one.descriptor, token: one.token, for: [.readable, .edge]) }
  }

  // MARK: Guest memory

  func write(_ bytes: [UInt8], at address: UInt64) {
    precondition(memory.copy(bytes.span, to: GuestAddress(address)) == bytes.count)
  }

  func read(_ count: Int, at address: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    precondition(memory.copy(from: GuestAddress(address), into: &span) == count)
    return bytes
  }

  /// `count` bytes of guest memory, at an address that is `skew` above a multiple of 4096.
  func allocate(_ count: Int, skew: UInt64 = 0) -> UInt64 {
    let address = next + skew
    next = (address + UInt64(count) + 4095) / 4096 * 4096
    return address
  }

  // MARK: Requests

  /// Makes a chain available: device-readable pieces with contents, then device-writable pieces of these sizes, filled with
  /// 0xEE. `skew` misaligns every piece.
  @discardableResult
  func submit(readable: [[UInt8]], writable: [Int], skew: UInt64 = 0, indirect: Bool = false) -> UInt16 {
    var pieces: [(UInt64, Int, UInt16)] = []
    for bytes in readable {
      let address = allocate(bytes.count, skew: skew)
      write(bytes, at: address)
      pieces.append((address, bytes.count, 0))
    }
    var places: [(address: UInt64, count: Int)] = []
    for count in writable {
      let address = allocate(count, skew: skew)
      write([UInt8](repeating: 0xEE, count: count), at: address)
      pieces.append((address, count, 2))
      places.append((address, count))
    }
    return submit(pieces: pieces, places: places, indirect: indirect)
  }

  /// Makes a chain of (address, length, flags) available.
  @discardableResult
  func submit(pieces: [(UInt64, Int, UInt16)], places: [(address: UInt64, count: Int)] = [], indirect: Bool = false) -> UInt16 {
    func descriptor(_ piece: (UInt64, Int, UInt16), next: UInt16?, more flags: UInt16 = 0) -> [UInt8] {
      var w = WireWriter()
      w.write(piece.0)
      w.write(UInt32(piece.1))
      w.write(piece.2 | (next == nil ? 0 : 1) | flags)
      w.write(next ?? 0)
      return w.bytes
    }
    var chain: [UInt16] = []
    if indirect {
      let table = allocate(16 * pieces.count)
      for (i, piece) in pieces.enumerated() {
        write(descriptor(piece, next: i + 1 < pieces.count ? UInt16(i + 1) : nil), at: table + UInt64(16 * i))
      }
      chain = [freeDescriptors.removeLast()]
      write(descriptor((table, 16 * pieces.count, 0), next: nil, more: 4), at: Self.descriptors + 16 * UInt64(chain[0]))
    } else {
      chain = pieces.map { _ in freeDescriptors.removeLast() }
      for (i, piece) in pieces.enumerated() {
        write(descriptor(piece, next: i + 1 < pieces.count ? chain[i + 1] : nil), at: Self.descriptors + 16 * UInt64(chain[i]))
      }
    }
    let head = chain[0]
    chains[head] = chain
    requests[head] = Request(head: head, writable: places, used: nil)
    var entry = WireWriter()
    entry.write(head)
    write(entry.bytes, at: Self.available + 4 + 2 * UInt64(availableIndex % Self.queueSize))
    availableIndex &+= 1
    var index = WireWriter()
    index.write(availableIndex)
    write(index.bytes, at: Self.available + 2)
    return head
  }

  // MARK: The device's turn

  /// Rounds as a worker runs them, until nothing is available. Does not wait for what is in flight.
  func kick() throws {
    try rounds { handler, queues throws(QueueError) in try handler.available(0, in: &queues) }
  }

  private func rounds(_ body: (any QueueHandler, inout QueueSet) throws(QueueError) -> Void) throws(QueueError) {
    var more = true
    var first = true
    while more {
      try queues[0].beginRound()
      queues[0].disarmKick()
      if first { try body(handler, &queues) } else { try handler.available(0, in: &queues) }
      first = false
      _ = queues[0].takeCall()
      more = queues[0].armKick()
      queues[0].endRound()
    }
    reap()
  }

  /// Kicks, and serves completions until everything submitted has come back.
  func run() throws {
    try kick()
    var ready = ReadySet()
    while !requests.values.allSatisfy({ $0.used != nil }) {
      guard try poller.wait(into: &ready, timeout: .seconds(10)) > 0 else { throw RigError.nothingHappens }
      for i in ready.indices {
        let token = ready.token(i)
        try rounds { handler, queues throws(QueueError) in try handler.ready(token, in: &queues) }
      }
    }
  }

  /// Stops the queue as a worker does.
  func finish() throws {
    try queues[0].beginRound()
    handler.finish(&queues)
    queues[0].endRound()
    reap()
  }

  private func reap() {
    var reader = read(2, at: Self.usedRing + 2)
    let index = UInt16(reader[0]) | UInt16(reader[1]) << 8
    while usedIndex != index {
      reader = read(8, at: Self.usedRing + 4 + 8 * UInt64(usedIndex % Self.queueSize))
      let head = UInt16(reader[0]) | UInt16(reader[1]) << 8
      let length = reader[4..<8].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      precondition(requests[head] != nil && requests[head]!.used == nil, "used twice, or never made available")
      requests[head]!.used = length
      freeDescriptors.append(contentsOf: chains.removeValue(forKey: head)!)
      usedIndex &+= 1
    }
  }

  /// What came back for a chain: the used length and all device-writable bytes; nil while it is with the device.
  func take(_ head: UInt16) -> (used: UInt32, bytes: [UInt8])? {
    guard let request = requests[head], let used = request.used else { return nil }
    requests[head] = nil
    return (used, request.writable.flatMap { read($0.count, at: $0.address) })
  }

  /// One request from start to end.
  func perform(readable: [[UInt8]], writable: [Int], skew: UInt64 = 0, indirect: Bool = false) throws -> (used: UInt32, bytes: [UInt8]) {
    let head = submit(readable: readable, writable: writable, skew: skew, indirect: indirect)
    try run()
    guard let result = take(head) else { throw RigError.nothingHappens }
    return result
  }

  var isRunning: Bool { queues.isRunning(0) }
}

enum RigError: Error { case nothingHappens }
