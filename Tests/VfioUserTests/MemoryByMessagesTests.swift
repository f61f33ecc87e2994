import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import PCI
import SocketMessages
import Storage
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioPCI
import VirtioTestKit

@testable import VfioUser

/// A client's memory as it serves it: by DMA_READ and DMA_WRITE, where it is mapped, and nowhere else.
final class ServedMemory: IOMMUDomain {
  private let client: Client
  let memory: GuestMemory
  /// As the client's own IOMMU has them; the server hears of them without a descriptor.
  let domain: Domain
  /// The memory's descriptor, if new mappings are to come with it.
  var shared: Int32?
  private(set) var reads = 0
  private(set) var writes = 0
  /// The most data in a message.
  private(set) var largest = 0
  /// What the server asked for that is not mapped so.
  private(set) var refused = 0
  /// The page of this guest address is refused.
  var refusing: GuestAddress?
  /// No answers are given: as a client that holds still.
  var isSilent = false

  init(_ client: Client, _ memory: GuestMemory) {
    self.client = client
    self.memory = memory
    domain = Domain(memory)
    client.serve = { [unowned self] in answer($0, $1) }
  }

  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    do { try domain.map(address, byteCount: count, to: guest, permissions: permissions) } catch {
      throw .iommu(address)
    }
    try ClientDomain(client, file: shared).map(address, to: guest, count: count, permissions: permissions)
  }

  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    try ClientDomain(client, file: nil).unmap(address, count: count)
    _ = try? domain.unmap(from: address, through: DMAAddress(address.rawValue + (count - 1)))
  }

  private func answer(_ header: VfioHeader, _ payload: [UInt8]) -> [UInt8]? {
    if isSilent { return nil }
    var reader = PayloadReader(payload, of: "DMA")
    guard let address = try? reader.take(UInt64.self), let count = try? reader.take(UInt64.self) else { return nil }
    let isRead = header.command == VfioCommand.readDMA.rawValue
    if isRead { reads += 1 } else { writes += 1 }
    var writer = PayloadWriter()
    writer.put(address)
    writer.put(count)
    let n = Int(count)
    largest = max(largest, n)
    var place = DMAAddress(address)
    var left = n
    var bytes = isRead ? [] : (try? reader.take(count: n)) ?? []
    #expect(isRead || bytes.count == n)
    while left > 0 {
      guard let run = try? domain.lookUp(place, for: isRead ? .read : .write, by: RequesterID(rawValue: 0)),
        run.permissions.allows(isRead ? .read : .write)
      else {
        refused += 1
        return VfioHeader.frame(
          id: header.id, command: header.command, flags: VfioHeader.reply | VfioHeader.failed, error: 19)
      }
      let part = min(left, Int(clamping: run.last.rawValue - place.rawValue) + 1)
      let guest = GuestAddress(run.guest.rawValue + (place.rawValue - run.first.rawValue))
      if let refusing, guest >= refusing, guest.rawValue < refusing.rawValue + 4096 {
        refused += 1
        return VfioHeader.frame(
          id: header.id, command: header.command, flags: VfioHeader.reply | VfioHeader.failed, error: 14)
      }
      if isRead {
        var some = [UInt8](repeating: 0, count: part)
        var span = some.mutableSpan
        #expect(memory.copy(from: guest, into: &span) == part)
        bytes += some
      } else {
        #expect(memory.copy(Array(bytes[(n - left)..<(n - left + part)]).span, to: guest) == part)
      }
      left -= part
      place = DMAAddress(place.rawValue + UInt64(part))
    }
    if isRead { writer.put(bytes) }
    return VfioHeader.frame(id: header.id, command: header.command, flags: VfioHeader.reply, writer.bytes)
  }
}

/// A virtio disk over vfio-user whose client shares no memory.
private final class DiskRig {
  let rig: Rig
  let client: Client
  let served: ServedMemory
  let mapper: IOMMUMapper
  let pages: GuestPages
  let transport: PCIDriverTransport
  let events: [EventFD]

  /// - Parameter rig: the server; nil: a new one.
  init(text: String = "{}", on rig: Rig? = nil) throws {
    var options = VirtioPCIOptions()
    (options.iommuPlatform, options.isHardware) = (.on, true)
    let server =
      try rig
      ?? Rig { [options] image, master in
        try VirtioPCIFunction(
          BlockDevice(BlockOptions(disk: DiskOptions(path: image))), options, on: master, log: .silent)
      }
    self.rig = server
    client = try Client(path: server.path, text: text)
    served = ServedMemory(client, server.memory)
    pages = GuestPages(server.memory, at: GuestAddress(1 << 20), byteCount: 7 << 20)
    mapper = IOMMUMapper(served, addresses: IOVAAllocator(aperture: 1 << 32...(1 << 33) - 1), pages: pages)
    client.writeConfiguration(at: 4, width: 2, 6)
    let events = try (0..<2).map { _ in try EventFD() }
    self.events = events
    try client.command(
      .setInterrupts,
      SetInterrupts(
        flags: SetInterrupts.dataEventfd | SetInterrupts.trigger, index: VfioInterrupt.msix, start: 0, count: 2
      ).encoded, descriptors: events.map(\.rawValue))
    transport = try PCIDriverTransport(client)
    let messages = (0..<2).map { InterruptMessage(address: 0xfee0_0000, data: UInt32($0)) }
    #expect(transport.enableMSIX(messages) && transport.setConfigurationVector(0) && transport.setVector(1, ofQueue: 0))
  }

  var wait: BoundedWait {
    BoundedWait(attempts: 20_000) { [client, events] in
      try? client.pump()
      for event in events { _ = try? event.drain() }
    }
  }

  func driver(_ kind: RingKind) throws -> BlockDriver {
    let withheld: Features = [kind.packed ? [] : .ringPacked, kind.indirect ? [] : .indirectDescriptors]
    let options = DriverOptions(withheld: withheld, wait: wait)
    return try BlockDriver(transport, on: DriverPlatform(pages: pages, mapper: mapper), options: options)
  }
}

@Suite("Guest memory without a descriptor", .timeLimit(.minutes(10))) struct MemoryByMessagesTests {
  @Test("A disk keeps its data, with rings and buffers that are reached by messages", arguments: RingKind.all)
  func disk(_ kind: RingKind) throws {
    let disk = try DiskRig()
    let driver = try disk.driver(kind)
    for round in 0..<12 {
      let count = 512 * (1 + round * 3)
      let pattern = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ round) }
      let (from, into) = (GuestAddress(0x80_0200), GuestAddress(0x90_0000))
      #expect(disk.rig.memory.copy(pattern.span, to: from) == count)
      try driver.write(UInt64(round), from: [GuestSegment(from, count: UInt32(count))].span)
      try driver.flush()
      try driver.read(UInt64(round), into: [GuestSegment(into, count: UInt32(count))].span)
      var back = [UInt8](repeating: 0, count: count)
      var span = back.mutableSpan
      #expect(disk.rig.memory.copy(from: into, into: &span) == count)
      #expect(back == pattern)
    }
    #expect(disk.served.reads > 0 && disk.served.writes > 0)
    #expect(disk.served.refused == 0)
  }

  @Test("A request of a page takes a bounded number of messages, in fewer flights", arguments: RingKind.all)
  func messages(_ kind: RingKind) throws {
    let disk = try DiskRig()
    let driver = try disk.driver(kind)
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    try driver.read(0, into: segments.span)
    let before = disk.served.reads + disk.served.writes
    let rounds = 20
    for _ in 0..<rounds { try driver.read(0, into: segments.span) }
    let each = Double(disk.served.reads + disk.served.writes - before) / Double(rounds)
    #expect(each > 6 && each < 20, "\(each) messages a request")
  }

  @Test("A request of more than a message takes is done in several, each within the client's limit")
  func large() throws {
    let disk = try DiskRig(text: #"{"capabilities": {"max_data_xfer_size" : 65536, "max_msg_fds":8}}"#)
    let driver = try disk.driver(RingKind(packed: true, indirect: true))
    let count = 3 << 20
    let pattern = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ $0 >> 9) }
    let (from, into) = (GuestAddress(0x80_0000), GuestAddress(0xb0_0000))
    #expect(disk.rig.memory.copy(pattern.span, to: from) == count)
    try driver.write(0, from: [GuestSegment(from, count: UInt32(count))].span)
    try driver.read(0, into: [GuestSegment(into, count: UInt32(count))].span)
    var back = [UInt8](repeating: 0, count: count)
    var span = back.mutableSpan
    #expect(disk.rig.memory.copy(from: into, into: &span) == count)
    #expect(back == pattern)
    #expect(disk.served.largest == 65_536)
  }

  @Test("The answers under way never fill a client's socket: QEMU would send the one in the middle of the other")
  func window() throws {
    let disk = try DiskRig()
    let driver = try disk.driver(RingKind(packed: true, indirect: true))
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 1 << 20)]
    // Answers are kept back while more can be asked for: as many bytes as the server lets come at a time.
    var kept: [(VfioHeader, [UInt8])] = []
    var most = 0
    let serve = try #require(disk.client.serve)
    disk.client.serve = { header, payload in
      kept.append((header, payload))
      return nil
    }
    for i in 0..<4 as Range<UInt64> { _ = try driver.submitWrite(2048 * i, from: segments.span) }
    driver.publish()
    let end = ContinuousClock.now + .seconds(60)
    while driver.outstanding > 0, ContinuousClock.now < end {
      try disk.client.pump(.milliseconds(2))
      let reads = kept.filter { $0.0.command == VfioCommand.readDMA.rawValue }
      most = max(most, reads.reduce(0) { $0 + Int($1.1[8]) | Int($1.1[9]) << 8 | Int($1.1[10]) << 16 })
      for (header, payload) in kept {
        if let answer = serve(header, payload) { try disk.client.answer(answer) }
      }
      kept = []
      _ = try driver.reap()
    }
    #expect(driver.outstanding == 0 && most > 0 && most <= ClientMessages.window)
  }

  @Test(
    "A buffer that the client refuses ends its request with an error, and the disk goes on", arguments: RingKind.all)
  func refused(_ kind: RingKind) throws {
    let disk = try DiskRig()
    let driver = try disk.driver(kind)
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    disk.served.refusing = GuestAddress(0x80_0000)
    #expect(throws: DriverError.self) { try driver.write(0, from: segments.span) }
    #expect(disk.served.refused > 0)
    disk.served.refusing = nil
    try driver.write(0, from: segments.span)
    try driver.read(0, into: segments.span)
  }

  @Test("A mapping that is gone is not asked for, and taking it away waits for nothing that the client owes")
  func gone() throws {
    let disk = try DiskRig()
    let driver = try disk.driver(RingKind())
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    try driver.write(0, from: segments.span)
    disk.served.isSilent = true
    _ = try driver.submitWrite(0, from: segments.span)
    driver.publish()
    // The queue waits for an answer to its look at the ring; the client waits for the answer to its unmap.
    let request = UnmapRequest(flags: UnmapRequest.everything, address: 0, size: 0)
    let begun = ContinuousClock.now
    try disk.client.command(.unmapDMA, request.encoded)
    #expect(ContinuousClock.now - begun < ClientMessages.patience)
    let (reads, writes) = (disk.served.reads, disk.served.writes)
    disk.served.isSilent = false
    for _ in 0..<4 { disk.transport.notify(0, data: 0) }
    try disk.client.command(.getInfo, DeviceInfo().encoded)
    try disk.client.pump(.milliseconds(20))
    #expect(disk.served.refused == 0)
    #expect((disk.served.reads, disk.served.writes) == (reads, writes))
  }

  @Test("A reset does not wait for a client that owes an answer, and the next driver finds the disk as it should be")
  func reset() throws {
    let disk = try DiskRig()
    let driver = try disk.driver(RingKind(packed: true))
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    try driver.write(0, from: segments.span)
    disk.served.isSilent = true
    _ = try driver.submitWrite(0, from: segments.span)
    driver.publish()
    let begun = ContinuousClock.now
    try disk.client.command(.reset)
    #expect(ContinuousClock.now - begun < ClientMessages.patience)
    disk.served.isSilent = false
    disk.client.writeConfiguration(at: 4, width: 2, 6)
    let next = try disk.driver(RingKind(packed: true))
    try next.read(0, into: segments.span)
  }

  @Test(
    "An answer to nothing, or of the wrong size, ends the connection; so does a write that is answered with another count",
    arguments: 0..<5)
  func wrong(_ kind: Int) throws {
    let disk = try DiskRig()
    let driver = try disk.driver(RingKind())
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    try driver.write(0, from: segments.span)
    let serve = try #require(disk.client.serve)
    disk.client.serve = { header, payload in
      let isWrite = header.command == VfioCommand.writeDMA.rawValue
      if kind > 2, !isWrite { return serve(header, payload) }
      return switch kind {
      case 0: VfioHeader.frame(id: header.id &+ 1, command: header.command, flags: VfioHeader.reply, payload)
      case 1: VfioHeader.frame(id: header.id, command: header.command, flags: VfioHeader.reply, payload + [0])
      case 2: VfioHeader.frame(id: header.id, command: 99, flags: VfioHeader.reply, payload)
      case 3:
        VfioHeader.frame(
          id: header.id, command: header.command, flags: VfioHeader.reply,
          Array(payload[..<8]) + [0, 0, 0, 0, 0, 0, 0, 0])
      default: VfioHeader.frame(id: header.id, command: header.command, flags: VfioHeader.reply)
      }
    }
    _ = try driver.submitWrite(0, from: segments.span)
    driver.publish()
    try? disk.client.pump(.milliseconds(50))
    #expect(disk.client.closesSoon)
  }

  @Test("A client that goes while a message to it is held up ends its session, and the next one is served")
  func goesUnderWay() throws {
    let rig = try DiskRig().rig
    for _ in 0..<5 {
      let disk = try DiskRig(on: rig)
      let (client, served) = (disk.client, disk.served)
      let driver = try disk.driver(RingKind(packed: true, indirect: true))
      let segments = [GuestSegment(GuestAddress(0x80_0000), count: 1 << 20)]
      for i in 0..<4 as Range<UInt64> { _ = try driver.submitRead(2048 * i, into: segments.span) }
      driver.publish()
      // What the reads bring is under way, and more than the socket holds.
      let end = ContinuousClock.now + .seconds(10)
      while served.writes < 2, ContinuousClock.now < end { try client.pump(.milliseconds(1)) }
      client.close()
    }
    _ = try Client(path: rig.path)
  }

  @Test("Rings and buffers that get a descriptor while the device is at work are found there")
  func remapped() throws {
    let disk = try DiskRig()
    let driver = try disk.driver(RingKind(packed: true))
    let segments = [GuestSegment(GuestAddress(0x80_0000), count: 4096)]
    try driver.write(0, from: segments.span)
    for run in disk.served.domain.runs {
      let count = run.last.rawValue - run.first.rawValue + 1
      let address = run.first.rawValue
      try disk.client.command(.unmapDMA, UnmapRequest(address: address, size: count).encoded)
      let request = MapRequest(flags: 3, offset: run.guest.rawValue, address: address, size: count)
      try disk.client.command(.mapDMA, request.encoded, descriptors: [disk.rig.file.descriptor.rawValue])
    }
    let before = disk.served.reads
    disk.served.shared = disk.rig.file.descriptor.rawValue
    try driver.read(0, into: segments.span)
    #expect(disk.served.reads == before)
  }
}
