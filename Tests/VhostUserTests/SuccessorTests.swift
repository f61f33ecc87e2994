import DMA
import HostIO
import Testing
import Virtio
import VirtioDrivers
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend
@testable import VhostUserFrontend

/// A back-end that holds what it takes, and the front-end at the other end.
private final class Holding {
  let disk: HoldingDevice
  let frontend: Frontend
  private let backend: BackendThread

  init(_ memory: FrontendMemory, packed: Bool) throws {
    disk = try HoldingDevice(.block)
    backend = try BackendThread(disk)
    frontend = try Frontend(backend.socket, memory: memory)
    try frontend.negotiate(packed ? [.version1, .ringPacked] : .version1)
    try frontend.share()
  }

  /// Waits until that many chains were taken in all.
  func waitTaken(_ count: Int64) throws -> Bool {
    var taken: Int64 = 0
    while taken < count {
      guard try disk.taken.wait(timeout: .seconds(10)) else { return false }
      taken += try disk.taken.drain()
    }
    return taken == count
  }

  /// Ends the connection, and returns when the back-end is gone.
  func end() {
    frontend.close()
    backend.join()
  }
}

@Suite("Back-ends that take over", .timeLimit(.minutes(10))) struct SuccessorTests {
  private static let layout = QueueLayout(
    size: 16, descriptorArea: DMAAddress(0x1000), driverArea: DMAAddress(0x2000), deviceArea: DMAAddress(0x3000))

  @Test(
    "The requests that a back-end has in its hands when it dies are done by its successor, once each (R126)",
    arguments: [false, true],
    // descriptors that memory was asked for; the ring has 16
    [16, 4] as [UInt16])
  func takeOver(_ packed: Bool, _ asked: UInt16) throws {
    let memory = try FrontendMemory(byteCount: 1 << 16)
    let guest = memory.guest
    let first = try Holding(memory, packed: packed)
    let inflight = try first.frontend.makeInflight(queueCount: 1, queueSize: asked)
    // QEMU describes the memory as it asked for it, not as it was answered.
    var description = inflight.description
    description.queueSize = asked
    try first.frontend.send(.setInflightDescriptor(description), descriptors: [inflight.file.descriptor.rawValue])
    guard
      let areas = DriverQueueMemory(
        guest, size: 16, features: first.frontend.features, descriptorArea: GuestAddress(0x1000),
        driverArea: GuestAddress(0x2000), deviceArea: GuestAddress(0x3000))
    else { return #expect(Bool(false)) }
    var queue = try DriverQueue(layout: Self.layout, features: first.frontend.features, memory: areas)
    func add() throws -> UInt16 {
      let readable = [DriverBuffer(DMAAddress(0x4000), count: 16)]
      let writable = [DriverBuffer(DMAAddress(0x5000), count: 64), DriverBuffer(DMAAddress(0x6000), count: 1)]
      return try queue.add(readable: readable.span, writable: writable.span)
    }
    var events = try first.frontend.startQueue(0, layout: Self.layout)
    func hand(_ count: Int64, to holding: Holding) throws {
      _ = queue.publish()
      events.kick()
      #expect(try holding.waitTaken(count))
    }
    // Three rounds given back first, so that positions are not those of the beginning.
    for _ in 0..<3 {
      for _ in 0..<4 { _ = try add() }
      try hand(4, to: first)
      first.disk.release.signal()
      for _ in 0..<4 { while try queue.reap() == nil { #expect(events.waitForCall(timeout: .seconds(10))) } }
    }
    var ids: Set<UInt16> = []
    for _ in 0..<4 { ids.insert(try add()) }
    try hand(4, to: first)

    // What there is at this moment is what a killed process leaves. Ours ends in good order; that is undone.
    let record = try HostMapping(
      descriptor: inflight.file.descriptor.rawValue, offset: 0, byteCount: Int(inflight.description.mmapSize))
    let recordBytes = record.bytes(record.byteCount)
    let guestBytes = guest.bytes(1 << 16, at: GuestAddress(0))
    first.end()
    _ = guest.copy(guestBytes.span, to: GuestAddress(0))
    _ = record.copy(recordBytes.span, to: 0)

    let second = try Holding(memory, packed: packed)
    try second.frontend.send(.setInflightDescriptor(description), descriptors: [inflight.file.descriptor.rawValue])
    // A front-end whose back-end died knows the used index at best.
    events = try second.frontend.startQueue(
      0, layout: Self.layout, resumingAt: packed ? .initial : QueueState(available: 12, used: nil))
    #expect(try second.waitTaken(4))
    ids.insert(try add())
    try hand(1, to: second)
    second.disk.release.signal()
    var done: [UInt16] = []
    while done.count < 5 {
      if let used = try queue.reap() {
        done.append(used.id)
      } else if !events.waitForCall(timeout: .seconds(10)) {
        break
      }
    }
    #expect(done.count == 5 && Set(done) == ids)
    _ = try second.frontend.stopQueue(0)
    #expect(try queue.reap() == nil)
    second.end()
  }

  @Test(
    "A front-end that goes at any message, or within one, leaves a back-end that ends, and a device that the next one can use"
  )
  func frontendGoes() throws {
    let files = try Files()
    let session = messages(files)
    for count in 0...session.count {
      for cut in [0, 7, 13] {
        let backend = try BackendThread(MemoryDisk(sectors: 8))
        for (bytes, descriptors) in session[..<count] {
          try backend.socket.send(bytes.span, descriptors: descriptors, timeout: .seconds(5))
        }
        if cut > 0, count < session.count {
          let (bytes, descriptors) = (Array(session[count].0.prefix(cut)), session[count].1)
          try backend.socket.send(bytes.span, descriptors: descriptors, timeout: .seconds(5))
        }
        backend.socket.shutdown()
        backend.join()
        let statistics = backend.server.statistics
        #expect(!statistics.isConnected && statistics.queues.allSatisfy { !$0.isRunning })
      }
    }
    withExtendedLifetime(files) {}
  }

  /// What a session's messages carry; it is the same for all of them.
  private final class Files {
    let memory: MemoryFile
    let event: EventFD
    let channel: (UnixSocket, UnixSocket)

    init() throws {
      memory = try MemoryFile(name: "guest", size: 1 << 20)
      event = try EventFD()
      channel = try UnixSocket.pair()
    }
  }

  private func messages(_ files: Files) -> [([UInt8], [Int32])] {
    let (memory, event, channel) = (files.memory.descriptor.rawValue, files.event.rawValue, files.channel.1.rawValue)
    let vring = VringDescriptor(0)
    let region = RegionDescription(guestAddress: 0, size: 1 << 20, frontendAddress: 1 << 40, offset: 0)
    let area = InflightDescription(mmapSize: 4096, mmapOffset: 0xf0000, queueCount: 1, queueSize: 16)
    let messages: [(FrontendRequest, [Int32])] = [
      (.getFeatures, []),
      (.setProtocolFeatures([.replyAck, .backendRequests, .inflightSharedMemory, .deviceState, .logSharedMemory]), []),
      (.setBackendRequestDescriptor, [channel]),
      (.setFeatures(Features([.version1, .accessPlatform]).word | 1 << 30 | 1 << 26), []),
      (.setMemoryTable([region]), [memory]), (.setLogBase(LogArea(size: 4096, offset: 0xe0000)), [memory]),
      (.setInflightDescriptor(area), [memory]), (.setVringSize(VringState(0, 16)), []),
      (.setVringAddress(VringAddress(index: 0, descriptorArea: 0x1000, driverArea: 0x2000, deviceArea: 0x3000)), []),
      (.setVringCall(vring), [event]), (.setVringError(vring), [event]), (.setVringKick(vring), [event]),
      (.setVringEnable(VringState(0, 1)), []),
      (
        .iotlb(.update(0, 0x10000, to: 1 << 40)),
        []
      ),
      (.iotlb(.invalidate(0, .max)), []),
      (.getVringBase(VringState(0, 0)), []),
      (.setDeviceStateDescriptor(DeviceStateTransfer(direction: .load)), [channel]), (.checkDeviceState, []),
    ]
    return messages.map { ($0.0.encoded(needsReply: true), $0.1) }
  }
}
