import DMA
import DriverDMA
import IOMMUInterface
import Virtio
import VirtioDrivers

/// How a driver's addresses lead to memory.
enum RingPath: String, CaseIterable {
  case physical
  case one
  case pages16k
  case pages64k

  var name: String {
    switch self {
    case .physical: "physical"
    case .one: "1"
    case .pages16k: "16k"
    case .pages64k: "64k"
    }
  }
}

/// The shape of a request and of the ring it goes through.
struct RingShape: Hashable {
  var packed: Bool
  var indirect: Bool
  var descriptors: Int

  var format: String { packed ? "packed" : "split" }
}

/// A driver and a device in one thread, over one memory: a request is added, published, popped, resolved, its header
/// read, its status written, completed and reaped.
struct RingFixture: ~Copyable {
  static let queueSize: UInt16 = 1024
  static let batch = 32
  static let dataPages = 1 << 16
  private static let dataBase: UInt64 = 16 << 20
  private static let tableCapacity = 32
  /// Device addresses with a mapping, far from guest addresses.
  private static let shift: UInt64 = 1 << 40

  private let memory: GuestMemory
  private var driver: DriverQueue
  private var device: Virtqueue
  private let shape: RingShape
  private let pages: UInt64
  private let shift: UInt64
  private let headers: UInt64
  /// Whether the driver's addresses jump about as the mappings' targets do: then the same memory is used in the same
  /// order.
  private let isScattered: Bool
  private var page: UInt64 = 0
  private var slot: UInt64 = 0
  /// So that no read is left out.
  private(set) var sum: UInt64 = 0

  /// One memory serves all fixtures of a run: 272 MiB, touched once.
  static func makeMemory() throws -> GuestMemory {
    let memory = try GuestMemory(byteCount: Int(dataBase) + dataPages * 4096)
    let zeros = [UInt8](repeating: 0, count: 1 << 20)
    for at in stride(from: 0, to: Int(dataBase) + dataPages * 4096, by: zeros.count) {
      _ = memory.copy(zeros.span, to: GuestAddress(UInt64(at)))
    }
    return memory
  }

  /// - Parameter place: which of the four places for rings is this fixture's. Fixtures that take turns on one packed
  ///   ring
  ///   would find what another left in its slots, and might take it for theirs.
  init(_ memory: GuestMemory, _ shape: RingShape, _ path: RingPath, place: Int) throws {
    guard place < 4 else { throw RingFailure.places }
    var features: Features = [.version1, .eventIndex, .indirectDescriptors]
    if shape.packed { features.insert(.ringPacked) }
    let pages = path == .pages64k ? 1 << 16 : 1 << 14
    let space: any DMASpace
    let shift: UInt64
    switch path {
    case .physical:
      space = PhysicalSpace(memory)
      shift = 0
    case .one:
      let domain = Domain(memory)
      try domain.map(DMAAddress(Self.shift), byteCount: memory.byteCount, to: GuestAddress(0), permissions: .readWrite)
      space = domain
      shift = Self.shift
    case .pages16k, .pages64k:
      let domain = Domain(memory)
      for page in 0..<Self.dataBase / 4096 {
        try domain.map(
          DMAAddress(Self.shift + page * 4096), byteCount: 4096, to: GuestAddress(page * 4096), permissions: .readWrite)
      }
      for page in 0..<pages {
        try domain.map(
          DMAAddress(Self.shift + Self.dataBase + UInt64(page) * 4096), byteCount: 4096,
          to: GuestAddress(Self.dataBase + Self.scattered(UInt64(page), UInt64(pages)) * 4096), permissions: .readWrite)
      }
      space = domain
      shift = Self.shift
    }
    // Rings below 1 MiB, tables there, headers and status bytes at 4 MiB.
    let descriptors = UInt64(place) << 18
    let (driverArea, deviceArea) = (descriptors + 0x10000, descriptors + 0x20000)
    let (tables, headers) = (1 << 20 as UInt64, 4 << 20 as UInt64)
    let layout = QueueLayout(
      size: Self.queueSize, descriptorArea: DMAAddress(descriptors + shift), driverArea: DMAAddress(driverArea + shift),
      deviceArea: DMAAddress(deviceArea + shift))
    guard
      let cells = DriverQueueMemory(
        memory, size: Self.queueSize, features: features, descriptorArea: GuestAddress(descriptors),
        driverArea: GuestAddress(driverArea), deviceArea: GuestAddress(deviceArea), tables: GuestAddress(tables),
        tableAddress: DMAAddress(tables + shift), tableCapacity: Self.tableCapacity)
    else { throw RingFailure.memory }
    let driver = try DriverQueue(layout: layout, features: features, memory: cells)
    let device = try Virtqueue(index: 0, layout: layout, features: features, in: space)
    isScattered = path == .physical || path == .one
    self.pages = UInt64(pages)
    self.shift = shift
    self.headers = headers
    self.memory = memory
    self.shape = shape
    self.driver = driver
    self.device = device
  }

  /// The page of guest memory behind a device page: scattered so that no two adjacent ones can be joined.
  @inline(__always) private static func scattered(_ page: UInt64, _ pages: UInt64) -> UInt64 {
    page &* 40503 & (pages &- 1)
  }

  /// The pieces of the next request: a header, data pages, a status; or a page alone.
  @inline(__always) private mutating func fill(_ pieces: inout [DriverBuffer]) {
    let count = shape.descriptors
    // Drivers reuse headers, so those are few.
    slot = (slot &+ 1) & 255
    let header = headers &+ slot &* 64 &+ shift
    if count > 1 {
      pieces[0] = DriverBuffer(DMAAddress(header), count: 16)
      pieces[count &- 1] = DriverBuffer(DMAAddress(header &+ 32), count: 1)
    }
    for i in (count > 1 ? 1 : 0)..<max(1, count &- 1) {
      // A stride that visits every page before it repeats one.
      page = (page &+ 7919) & (pages &- 1)
      let at = isScattered ? Self.scattered(page, pages) : page
      pieces[i] = DriverBuffer(DMAAddress(Self.dataBase &+ at &* 4096 &+ shift), count: 4096)
    }
  }

  /// Batches after which every page has been part of a request.
  static func lap(_ shape: RingShape) -> Int { dataPages / max(1, shape.descriptors - 2) / batch + 1 }

  /// Does `batches` batches of requests. Returns nanoseconds in all, and in the device's part.
  mutating func run(batches: Int) throws -> (all: UInt64, device: UInt64) {
    let count = shape.descriptors
    var pieces = [DriverBuffer](repeating: DriverBuffer(DMAAddress(0), count: 0), count: count)
    let readableCount = count > 1 ? 1 : 0
    var deviceTime: UInt64 = 0
    let start = now()
    for _ in 0..<batches {
      for _ in 0..<Self.batch {
        fill(&pieces)
        let request = pieces.span
        _ = try driver.add(
          readable: request.extracting(0..<readableCount), writable: request.extracting(readableCount..<count),
          indirect: shape.indirect)
      }
      _ = driver.publish()
      let popped = now()
      try serve()
      deviceTime &+= now() &- popped
      while let used = try driver.reap() { sum = sum &+ UInt64(used.written) }
    }
    return (now() &- start, deviceTime)
  }

  private mutating func serve() throws(QueueError) {
    // A batch of long chains, or of any on a slow machine, takes longer than a round may.
    while try serveRound() {}
  }

  /// Whether another round has to follow.
  private mutating func serveRound() throws(QueueError) -> Bool {
    let hasStatus = shape.descriptors > 1
    try device.beginRound()
    device.disarmKick()
    while let chain = try device.next() {
      if let type = chain.readable.read(UInt32.self, at: 0) { sum &+= UInt64(type) }
      // One descriptor is a buffer to be filled: its memory is resolved, not touched.
      if hasStatus { _ = chain.writable.write(0 as UInt8, at: chain.writable.byteCount - 1) }
      let written = chain.writable.byteCount
      device.complete(chain, written: written)
    }
    _ = device.takeCall()
    let hasMore = device.armKick()
    device.endRound()
    return hasMore
  }
}

enum RingFailure: Error {
  case memory
  /// More paths than there are places for rings.
  case places
}
