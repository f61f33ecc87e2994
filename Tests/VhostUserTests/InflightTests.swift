import DMA
import HostIO
import SocketMessages
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// Memory for in-flight records that outlives the recorders in it, as it does a process.
private struct Survivor {
  let mapping: HostMapping
  let size: UInt16

  init(size: UInt16) throws {
    mapping = try HostMapping(anonymous: 4096)
    self.size = size
  }

  var cells: RingMemory { mapping.cells(from: 0, byteCount: 4096)! }
  func split() -> SplitInflight { SplitInflight(cells, size: size, capacity: size) }
  func packed() -> PackedInflight { PackedInflight(cells, size: size, capacity: size) }

  /// Nonsense everywhere, but for the version and the size.
  func fill(_ byte: UInt8) {
    _ = mapping.copy([UInt8](repeating: byte, count: 4096).span, to: 0)
    cells.store16(1, at: 8)
    cells.store16(8, at: 10)
  }
}

extension InflightRecorder {
  /// Resumes where nothing can be read off a ring's slots.
  fileprivate func resume(at state: QueueState = .initial, used: UInt16? = nil) -> QueueResumption {
    resume(at: state, used: used) { _ in 0 }
  }
}

private func descriptors(_ id: UInt16, _ count: Int) -> [RingDescriptor] {
  (0..<count).map {
    RingDescriptor(address: DMAAddress(UInt64(id) << 16 + UInt64($0)), length: UInt32($0 + 1), id: id, flags: 0x80)
  }
}

@Suite("Requests in flight outlive the back-end") struct InflightTests {
  @Test("Split: what was popped and not published is done again, in the order it was popped (R126)")
  func splitOrder() throws {
    let memory = try Survivor(size: 8)
    let first = memory.split()
    let start = QueueState(available: 40, used: nil)
    #expect(first.resume(at: start, used: 40) == QueueResumption(state: start))
    for head in [5, 2, 7, 0] as [UInt16] { #expect(first.popped(head: head) == head) }
    first.completing(2)
    first.published(used: 41, wrap: true)
    let next = memory.split().resume(at: start, used: 41)
    #expect(next.again.map(\.id) == [5, 7, 0])
    #expect(next.state.available == 44 && next.state.used == 41)
  }

  @Test("Split: dying after the used index became visible and before the marks were taken back repeats nothing")
  func splitWindow() throws {
    let memory = try Survivor(size: 8)
    let first = memory.split()
    _ = first.resume(used: 0)
    for head in [1, 2, 3, 4] as [UInt16] { _ = first.popped(head: head) }
    first.completing(3)
    first.published(used: 1, wrap: true)
    first.completing(1)
    first.completing(4)
    // Two entries are visible, but not recorded.
    let next = memory.split().resume(used: 3)
    #expect(next.again.map(\.id) == [2])
    #expect(next.state.available == 4 && next.state.used == 3)
  }

  @Test("Split: dying before the used index became visible repeats the batch")
  func splitBefore() throws {
    let memory = try Survivor(size: 8)
    let first = memory.split()
    _ = first.resume(used: 0)
    for head in [1, 2] as [UInt16] { _ = first.popped(head: head) }
    first.completing(2)
    #expect(memory.split().resume(used: 0).again.map(\.id) == [1, 2])
  }

  @Test("Split: memory full of nonsense is survived", arguments: [UInt8(0xff), 0x01, 0x7e])
  func splitNonsense(_ byte: UInt8) throws {
    let memory = try Survivor(size: 8)
    memory.fill(byte)
    let next = memory.split().resume(used: 3)
    #expect(next.again.count <= 8 && next.again.allSatisfy { $0.id < 8 })
  }

  @Test("Packed: chains are done again from their record, and the positions follow (R126)")
  func packedOrder() throws {
    let memory = try Survivor(size: 8)
    let first = memory.packed()
    let start = QueueState(available: 6, availableWrap: true, used: 6, usedWrap: true)
    #expect(first.resume(at: start).state == start)
    let a = try #require(first.popped(id: 10, descriptors: descriptors(10, 3)))
    let b = try #require(first.popped(id: 11, descriptors: descriptors(11, 1)))
    _ = try #require(first.popped(id: 12, descriptors: descriptors(12, 2)))
    first.completing(b)
    first.published(used: 7, wrap: true)
    let next = memory.packed().resume()
    #expect(next.again.map(\.id) == [10, 12])
    #expect(next.again[0].descriptors == descriptors(10, 3) && next.again[0].record == a)
    #expect(next.state == QueueState(available: 4, availableWrap: false, used: 7, usedWrap: true))
  }

  @Test("Packed: whether a chain given back last was seen is read off its slot", arguments: [true, false])
  func packedWindow(_ isVisible: Bool) throws {
    let memory = try Survivor(size: 8)
    let first = memory.packed()
    _ = first.resume()
    let a = try #require(first.popped(id: 1, descriptors: descriptors(1, 2)))
    _ = try #require(first.popped(id: 2, descriptors: descriptors(2, 3)))
    first.completing(a)
    let next = memory.packed().resume(at: QueueState(), used: nil) { slot in
      #expect(slot == 0)
      return isVisible ? 1 << 7 | 1 << 15 : 1 << 7
    }
    #expect(next.again.map(\.id) == (isVisible ? [2] : [1, 2]))
    #expect(next.state.used == (isVisible ? 2 : 0) && next.state.available == 5)
    // The entries of what is done are free again, and those of the rest are not.
    let third = memory.packed()
    _ = third.resume()
    #expect(third.popped(id: 3, descriptors: descriptors(3, isVisible ? 6 : 4)) == nil)
    #expect(third.popped(id: 3, descriptors: descriptors(3, isVisible ? 5 : 3)) != nil)
  }

  @Test("Packed: no more chains are taken down than there is room for, and room comes back")
  func packedRoom() throws {
    let memory = try Survivor(size: 4)
    let recorder = memory.packed()
    _ = recorder.resume()
    var position: UInt16 = 0
    for round in 0..<20 as Range<UInt16> {
      let one = try #require(recorder.popped(id: round, descriptors: descriptors(round, 3)))
      #expect(recorder.popped(id: 99, descriptors: descriptors(99, 2)) == nil)
      recorder.completing(one)
      position += 3
      recorder.published(used: position % 4, wrap: position / 4 % 2 == 0)
    }
    let next = memory.packed().resume()
    #expect(next.again.isEmpty && next.state.used == 0 && next.state.usedWrap == (60 / 4 % 2 == 0))
  }

  @Test("Packed: memory full of nonsense is survived", arguments: [UInt8(0), 0x01, 0x02])
  func packedNonsense(_ byte: UInt8) throws {
    let memory = try Survivor(size: 8)
    memory.fill(byte)
    for offset in [12, 14, 16, 18] { memory.cells.store16(UInt16(byte), at: offset) }
    let recorder = memory.packed()
    let next = recorder.resume()
    #expect(next.again.count <= 8 && next.state.available < 8)
    for id in 0..<20 as Range<UInt16> {
      guard let one = recorder.popped(id: id, descriptors: descriptors(id, 2)) else { continue }
      recorder.completing(one)
      recorder.published(used: 0, wrap: true)
    }
  }
}

@Suite("Where in-flight memory lies") struct InflightShapeTests {
  private func region(
    _ file: borrowing MemoryFile, _ byteCount: Int, queues: UInt16, size: UInt16
  ) throws -> InflightRegion {
    try InflightRegion(
      InflightDescription(mmapSize: UInt64(byteCount), mmapOffset: 0, queueCount: queues, queueSize: size),
      try .duplicating(file.descriptor.rawValue))
  }

  @Test(
    "Memory made here has room for its largest ring in every piece, even if asked for smaller ones",
    arguments: [false, true])
  func made(_ packed: Bool) throws {
    let shape = InflightShape(capacity: 1024, packed: packed)
    let file = try shape.makeFile(queueCount: 3)
    let region = try region(file, shape.byteCount(queueCount: 3), queues: 3, size: 128)
    #expect(region.capacity == 1024)
    var end = 0
    for index in 0..<3 {
      let piece = try region.piece(index, size: 1024, packed: packed)
      #expect(
        piece.offset >= end && piece.capacity == 1024 && piece.byteCount >= (packed ? 32 + 32 * 1024 : 16 + 16 * 1024))
      end = piece.offset + piece.byteCount
    }
    #expect(end + 64 == shape.byteCount(queueCount: 3))
    #expect(throws: ProtocolError.self) { try region.piece(0, size: 1025, packed: packed) }
    #expect(throws: ProtocolError.self) { try region.piece(3, size: 16, packed: packed) }
  }

  @Test("Memory that was made for packed rings serves split ones, and not the other way round")
  func otherFormat() throws {
    for packed in [false, true] {
      let shape = InflightShape(capacity: 64, packed: packed)
      let region = try region(try shape.makeFile(queueCount: 2), shape.byteCount(queueCount: 2), queues: 2, size: 64)
      if packed {
        #expect(try region.piece(1, size: 64, packed: false).offset == shape.stride)
      } else {
        #expect(throws: ProtocolError.self) { try region.piece(0, size: 64, packed: true) }
      }
    }
  }

  @Test("Memory of another back-end has its pieces where the text puts them", arguments: [false, true])
  func others(_ packed: Bool) throws {
    let file = try MemoryFile(name: "inflight", size: 16384)
    let region = try region(file, 16384, queues: 2, size: 128)
    let piece = try region.piece(1, size: 128, packed: packed)
    #expect(region.capacity == 128 && piece.offset == (packed ? 4160 : 2112))
  }

  /// A lie: what the block says, and the virtqueues that are asked for.
  struct Lie: Sendable { var stride: UInt32, capacity: UInt16, queues: UInt16 }

  @Test(
    "A block that cannot be true is as none",
    arguments: [
      Lie(stride: 4096, capacity: 0, queues: 1), Lie(stride: 4096, capacity: 255, queues: 4),
      Lie(stride: 4096, capacity: 256, queues: 1),
      Lie(stride: 4095, capacity: 16, queues: 1), Lie(stride: 0, capacity: 16, queues: 1),
      Lie(stride: .max & ~63, capacity: 16, queues: 1),
      Lie(stride: 1 << 31, capacity: 65535, queues: 1),
    ])
  func lies(_ lie: Lie) throws {
    let file = try InflightShape(capacity: 1000, packed: false).makeFile(queueCount: 1)
    #expect(InflightShape(capacity: 1000, packed: false).byteCount(queueCount: 1) == 16128)
    let block = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 16128).cells(
      from: 16128 - 64, byteCount: 64)
    guard let block else { return #expect(Bool(false)) }
    block.store32(lie.stride, at: 8)
    block.store16(lie.capacity, at: 12)
    let region = try region(file, 16128, queues: lie.queues, size: 20)
    #expect(region.capacity == 20)
    #expect(try region.piece(0, size: 20, packed: false).byteCount == 384)
  }
}

@Suite("In-flight memory over the wire", .timeLimit(.minutes(10))) struct InflightSessionTests {
  @Test("The back-end makes the memory, takes it back, and a successor does what was in flight, once (R126)")
  func successor() throws {
    let first = try RawFrontend.negotiated()
    let record = try RawFrontend.Record(of: first)
    // Room for the largest ring that the device takes.
    #expect(record.area.queueCount == 1 && record.area.queueSize == 256 && record.area.mmapSize >= 16 + 16 * 256)
    try first.share()
    try first.install(record)
    try first.startRing()
    #expect(try first.read(sector: 1))
    try first.stopRing()
    // As if the back-end had died with this one popped: marked in flight, not used.
    guard let cells = record.mapping.cells(from: 0, byteCount: record.mapping.byteCount) else {
      return #expect(Bool(false))
    }
    #expect(cells.load16(at: 8) == 1 && cells.load16(at: 14) == 1 && cells.load16(at: 16) & 0xff == 0)
    cells.store16(1, at: 16)
    first.submitRead(sector: 2)
    // What the front-end says about the position is out of date.
    try first.startRing(at: 1)
    #expect(try first.waitUsed(2))
    #expect(first.peek(512, RawFrontend.Place.data) == Array(first.disk.contents[1024..<1536]))
    #expect(try first.stopRing() == RawFrontend.stopped(at: 2))
    #expect(first.server.statistics.queues[0].counts.requests == 2)
  }

  @Test(
    "Descriptions that make no sense are refused",
    arguments: [
      InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 1, queueSize: 16),
      InflightDescription(mmapSize: 4096, mmapOffset: 0, queueCount: 0, queueSize: 16),
      InflightDescription(mmapSize: 4096, mmapOffset: 0, queueCount: 1, queueSize: 0),
      InflightDescription(mmapSize: 4096, mmapOffset: 8, queueCount: 1, queueSize: 16),
      InflightDescription(mmapSize: 1 << 33, mmapOffset: 0, queueCount: 1, queueSize: 16),
      InflightDescription(mmapSize: 4096, mmapOffset: .max - 63, queueCount: 1, queueSize: 16),
      InflightDescription(mmapSize: 8192, mmapOffset: 0, queueCount: 1, queueSize: 16),
    ])
  func refused(_ area: InflightDescription) throws {
    let frontend = try RawFrontend.negotiated()
    let file = try MemoryFile(name: "inflight", size: 4096)
    #expect(try frontend.ask(.setInflightDescriptor(area), ack: true, [file.descriptor.rawValue]) == .value(1))
  }

  @Test("Memory too small for the ring keeps the ring from starting")
  func tooSmall() throws {
    let frontend = try RawFrontend.sharing()
    let file = try MemoryFile(name: "inflight", size: 4096)
    try frontend.must(
      .setInflightDescriptor(InflightDescription(mmapSize: 64, mmapOffset: 0, queueCount: 1, queueSize: 16)),
      [file.descriptor.rawValue])
    try frontend.describeRing()
    try frontend.giveKick()
    #expect(try frontend.ask(.setVringEnable(VringState(0, 1)), ack: true) == .value(1))
  }

  @Test("A ring larger than another back-end's memory runs without it, and the memory stays as it is")
  func largerRing() throws {
    let frontend = try RawFrontend.sharing()
    let file = try MemoryFile(name: "inflight", size: 4096)
    try frontend.must(
      .setInflightDescriptor(InflightDescription(mmapSize: 4096, mmapOffset: 0, queueCount: 1, queueSize: 8)),
      [file.descriptor.rawValue])
    try frontend.startRing(size: 16)
    #expect(try frontend.read(sector: 1))
    let mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 4096)
    #expect(mapping.bytes(4096).allSatisfy { $0 == 0 })
  }
}
