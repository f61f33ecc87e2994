import DMA
import Foundation
import FrontendKit
import HostIO
import QTestKit

/// What something took: of the clock, of QEMU's process and of the back-end's. Nanoseconds.
struct FloorTime {
  var wall: Double, qemu: Double, backend: Double

  /// The middle of each.
  init(median times: [FloorTime]) {
    wall = median(times.map(\.wall))
    qemu = median(times.map(\.qemu))
    backend = median(times.map(\.backend))
  }

  init(wall: Double, qemu: Double, backend: Double) {
    self.wall = wall
    self.qemu = qemu
    self.backend = backend
  }

  static func - (a: FloorTime, b: FloorTime) -> FloorTime {
    FloorTime(wall: a.wall - b.wall, qemu: a.qemu - b.qemu, backend: a.backend - b.backend)
  }
  static func / (a: FloorTime, count: Int) -> FloorTime {
    FloorTime(wall: a.wall / Double(count), qemu: a.qemu / Double(count), backend: a.backend / Double(count))
  }
}

/// How many requests are made available at once, and of how many pages each is.
struct FloorShape {
  var depth: Int, pages: Int
  var all: Int { depth * pages }
}

/// One back-end's disk behind QEMU's VT-d, and the driver of a guest that is not there. Everything that QEMU need not
/// do is done in the guest's memory, which this process has mapped; in what is measured QEMU sees one notification, or
/// one write of the invalidation queue's tail.
final class FloorDisk {
  let name: String
  /// Pages that were mapped anew and used since.
  private(set) var coldPages = 0
  private let machine: DiskMachine
  private let disk: DiskMachine.Disk
  private let vtd: VTd
  private let memory: DeviceMemory
  private let cells: RingMemory
  private let notification: UInt64
  private let backend: Int32
  private let areas: (descriptor: UInt64, driver: UInt64, device: UInt64)
  private let headers: UInt64
  private let statuses: UInt64
  private let data: UInt64
  private let frames: [UInt64]
  private var shape = FloorShape(depth: 1, pages: 1)
  private var position: UInt16 = 0
  private static let ringSize = 256
  /// So many pages have an invalidation of the unit's cache and one of the device's in one batch.
  static let mostPages = 120
  /// A requester that no device is.
  private static let unmapped: UInt16 = 0xfff8

  init(_ name: String, _ machine: DiskMachine, _ disk: DiskMachine.Disk, guest: HostMapping) throws {
    guard let vtd = machine.vtd, disk.hasATS, let server = disk.server else {
      throw BenchFailure("\(name): no VT-d, no ATS or no back-end")
    }
    guard let cells = guest.cells(from: 0, byteCount: guest.byteCount) else {
      throw BenchFailure("the guest's memory cannot be looked at")
    }
    self.name = name
    self.machine = machine
    self.disk = disk
    self.vtd = vtd
    self.cells = cells
    backend = server.program.id
    let function = disk.function
    memory = try machine.domain(for: disk)
    _ = try DiskDriver.negotiate(function, Feature.version1 | Feature.accessPlatform)
    areas = (try memory.allocate(4096), try memory.allocate(4096), try memory.allocate(4096))
    headers = try memory.allocate(Self.mostPages * 16)
    statuses = try memory.allocate(Self.mostPages)
    data = memory.reserve(Self.mostPages)
    frames = try machine.qemu.frames.takeScattered(Self.mostPages)
    try function.enableQueue(
      0, size: UInt16(Self.ringSize), descriptor: areas.descriptor, driver: areas.driver, device: areas.device)
    notification = try function.notificationAddress(0)
    // The driver looks by itself: a call would be QEMU's work in the middle of what is measured.
    self.cells.store16(1, at: Int(try memory.frame(of: areas.driver)))
    try function.setStatus(0xf)
  }

  /// Writes the descriptors of requests of that shape: each a header, a block of every page, a status.
  func prepare(_ shape: FloorShape) throws {
    self.shape = shape
    let table = Int(try memory.frame(of: areas.descriptor))
    for i in 0..<shape.depth {
      let head = i * (shape.pages + 2)
      let header = headers + 16 * UInt64(i)
      // A read of the first blocks: type 0, sector 0, as the memory was zeroed.
      var pieces = [Piece(header, 16, writable: false)]
      pieces += (0..<shape.pages).map { Piece(data + 4096 * UInt64(i * shape.pages + $0), 512, writable: true) }
      pieces.append(Piece(statuses + UInt64(i), 1, writable: true))
      for (k, piece) in pieces.enumerated() {
        let isLast = k + 1 == pieces.count
        let at = table + 16 * (head + k)
        cells.store64(piece.address, at: at)
        cells.store32(piece.count, at: at + 8)
        cells.store32(
          (isLast ? 0 : 1) | (piece.isWritable ? 2 : 0) | UInt32(isLast ? 0 : head + k + 1) << 16, at: at + 12)
      }
    }
  }

  /// So many times the requests, with pages that were not asked for before, and their invalidations. The middle of
  /// each.
  func cold(_ repeats: Int) throws -> (asking: FloorTime, forgetting: FloorTime) {
    var asking: [FloorTime] = [], forgetting: [FloorTime] = []
    for _ in 0..<repeats {
      try memory.map(data, to: Array(frames.prefix(shape.all)))
      asking.append(try request())
      forgetting.append(try unmap())
    }
    coldPages += repeats * shape.all
    return (FloorTime(median: asking), FloorTime(median: forgetting))
  }

  /// The same requests, with pages whose translations are cached, and invalidations that reach no back-end.
  func warm(_ repeats: Int) throws -> (asking: FloorTime, forgetting: FloorTime) {
    var asking: [FloorTime] = [], forgetting: [FloorTime] = []
    try memory.map(data, to: Array(frames.prefix(shape.all)))
    _ = try request()
    for _ in 0..<repeats {
      asking.append(try request())
      forgetting.append(try invalidate(Self.unmapped))
    }
    _ = try unmap()
    coldPages += shape.all
    return (FloorTime(median: asking), FloorTime(median: forgetting))
  }

  private func request() throws -> FloorTime {
    let driver = Int(try memory.frame(of: areas.driver))
    let used = Int(try memory.frame(of: areas.device)) + 2
    let status = Int(try memory.frame(of: statuses))
    for i in 0..<shape.depth {
      cells.store16(UInt16(i * (shape.pages + 2)), at: driver + 4 + 2 * ((Int(position) + i) % Self.ringSize))
    }
    for i in stride(from: 0, to: shape.depth, by: 2) { cells.store16(0xffff, at: status + i) }
    position &+= UInt16(shape.depth)
    let target = position
    cells.storeRelease16(target, at: driver + 2)
    let time = try measured {
      try machine.qemu.store(notification, 0 as UInt16)
      let end = now() + 10_000_000_000
      // Two processors: a polling thread takes one from the threads it waits for.
      while cells.loadAcquire16(at: used) != target {
        usleep(2)
        guard now() < end else {
          throw BenchFailure(
            "\(name) did not answer within 10 seconds: \(disk.server?.program.said ?? ""), \(machine.qemu.said)")
        }
      }
    }
    for i in 0..<shape.depth {
      let two = cells.load16(at: status + i & ~1)
      guard two >> (i & 1 == 0 ? 0 : 8) & 0xff == 0 else { throw BenchFailure("\(name): a request failed") }
    }
    return time
  }

  private func unmap() throws -> FloorTime {
    try memory.unmap(data, pages: shape.all)
    return try invalidate(disk.function.address.requester)
  }

  /// As Linux under strict: for each page the unit's cache and the device's.
  private func invalidate(_ requester: UInt16) throws -> FloorTime {
    guard let domain = memory.table?.domain else { throw BenchFailure("\(name) has no domain") }
    var all: [VTd.Invalidation] = []
    for page in 0..<shape.all {
      let address = data + 4096 * UInt64(page)
      all += [
        .pages(domain: domain, address: address, order: 0), .device(requester: requester, address: address, order: 0),
      ]
    }
    try vtd.prepare(all)
    return try measured { try vtd.submit() }
  }

  private func measured(_ body: () throws -> Void) throws -> FloorTime {
    let qemu = BackendProcess.processorTime(of: machine.qemu.id), other = BackendProcess.processorTime(of: backend)
    let start = now()
    try body()
    let wall = now() - start
    return FloorTime(
      wall: Double(wall), qemu: Double(BackendProcess.processorTime(of: machine.qemu.id) - qemu),
      backend: Double(BackendProcess.processorTime(of: backend) - other))
  }
}
