import DMA
import HostIO
import IOMMUInterface
import Logging
import Synchronization
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("Running a device", .timeLimit(.minutes(10))) struct DeviceRunnerTests {
  /// A holding device behind a domain, with a literal driver: ring pages at 1 MiB, buffers from 2 MiB on, mapped one to
  /// one.
  final class Rig {
    let memory: GuestMemory
    let domain: Domain
    let device: HoldingDevice
    let troubles: Troubles
    let runner: DeviceRunner
    let kick: EventFD
    let call: EventFD
    let ring: any LiteralRing
    let layout: QueueLayout
    let features: Features

    init(packed: Bool = false, queues: Int = 1) throws {
      memory = try GuestMemory(byteCount: 8 << 20)
      domain = Domain(memory)
      device = try HoldingDevice(DeviceID(rawValue: 60), fill: 0x5a, queues: queues, size: 64)
      troubles = try Troubles()
      runner = DeviceRunner(device, name: "test", events: troubles, log: .silent)
      kick = try EventFD()
      call = try EventFD()
      features = packed ? [.version1, .ringPacked, .accessPlatform] : [.version1, .accessPlatform]
      let place = literalLayout(size: 16, packed: packed, at: 1 << 20)
      layout = place.layout
      try domain.map(
        DMAAddress(1 << 20), byteCount: (place.end + 4095) / 4096 * 4096 - 1 << 20, to: GuestAddress(1 << 20),
        permissions: .readWrite)
      ring = makeLiteralRing(layout, features: features, in: LiteralMemory(memory))
    }

    deinit { runner.reset() }

    func start(_ index: Int = 0, resumingAt state: QueueState = .initial) throws {
      runner.setCall(index, call)
      try runner.start(
        QueueStart(index: index, layout: layout, features: features, space: domain, kick: kick, state: state))
    }

    /// Posts one device-writable buffer of a page and waits until the device holds it.
    func post(_ address: UInt64) throws { try offer(address, 4096) }

    /// What the device gave back, waiting for it.
    func reap(_ count: Int) throws -> [LiteralUsed] {
      var used: [LiteralUsed] = []
      while used.count < count {
        used += ring.takeUsed()
        if used.count >= count { break }
        guard try call.wait(timeout: .seconds(20)) else { break }
        _ = try call.drain()
      }
      return used
    }

    func byte(_ address: UInt64) -> UInt8 { memory.bytes(1, at: GuestAddress(address))[0] }

    /// Lets the device reach pages, one to one.
    func map(_ address: UInt64, pages: UInt64 = 1, _ permissions: DMAPermissions = .readWrite) throws {
      try domain.map(DMAAddress(address), byteCount: pages * 4096, to: GuestAddress(address), permissions: permissions)
    }

    /// Makes a buffer of `count` bytes available, and says that the device took it.
    func offer(_ address: UInt64, _ count: UInt32, in other: (any LiteralRing)? = nil) throws {
      let ring = other ?? ring
      ring.post([LiteralDescriptor(DMAAddress(address), count, writable: true)])
      ring.publish()
      kick.signal()
      try expectTaken()
    }

    func expectTaken() throws {
      #expect(try device.taken.wait(timeout: .seconds(20)))
      _ = try device.taken.drain()
    }

    /// Unmaps a page on a thread of its own; what is signalled when that is over.
    func unmap(_ page: UInt64) throws -> (thread: WorkerThread, isOver: EventFD) {
      let (domain, isOver) = (domain, try EventFD())
      let thread = try WorkerThread(name: "unmap") {
        _ = try? domain.unmap(from: DMAAddress(page), through: DMAAddress(page + 4095))
        isOver.signal()
      }
      return (thread, isOver)
    }

    /// Starts a queue as it says.
    func start(
      _ index: Int = 0, _ layout: QueueLayout, _ features: Features? = nil, space: (any DMASpace)? = nil,
      kick: EventFD? = nil
    ) throws {
      try runner.start(
        QueueStart(
          index: index, layout: layout, features: features ?? self.features, space: space ?? domain, kick: kick))
    }
  }

  @Test(
    "An unmap waits for input and output in flight, and no byte is written after it (R110, R159)",
    arguments: [false, true])
  func unmapWaits(_ packed: Bool) async throws {
    let rig = try Rig(packed: packed)
    let page: UInt64 = 2 << 20
    try rig.map(page, .write)
    try rig.start()
    try rig.post(page)
    #expect(rig.device.held.load(ordering: .sequentiallyConsistent) == 1)
    let generation = rig.domain.fence.generation
    let (thread, unmapped) = try rig.unmap(page)
    #expect(eventually { rig.domain.fence.generation != generation }, "it has begun")
    // It cannot have ended: the chain is held. A quarter of a second is what a wrong one has to show itself.
    #expect(try unmapped.wait(timeout: .milliseconds(250)) == false)
    #expect(rig.byte(page) == 0)
    rig.device.release.signal()
    #expect(try unmapped.wait(timeout: .seconds(20)))
    thread.join()
    // The write came before the unmap was over, and is there.
    #expect(rig.byte(page) == 0x5a)
    #expect(try rig.reap(1).map(\.length) == [4096])
    #expect(rig.runner.stop(0) != nil)
  }

  @Test(
    "A queue that stands still, whose stop was not yet answered, can be told to stop once more",
    .timeLimit(.minutes(10)))
  func stoppedTwice() throws {
    let rig = try Rig()
    try rig.start()
    let event = try EventFD()
    let first = try #require(rig.runner.beginStop(0, notifying: event))
    while !first.isOver { _ = try event.wait(timeout: .seconds(20)) }
    // Its thread may have ended by now, and with it its answer.
    let second = try #require(rig.runner.beginStop(0, .leavingReplays, notifying: event))
    #expect(rig.runner.endStop(second) == nil)
    #expect(rig.runner.endStop(first) != nil)
  }

  @Test(
    "While a request is in flight ten thousand unmaps of other pages return at once, its own page's does not, nor the ring's (R110, R112)"
  )
  func otherPages() throws {
    let rig = try Rig()
    let (slow, other): (UInt64, UInt64) = (2 << 20, 3 << 20)
    try rig.map(slow, .write)
    try rig.start()
    try rig.post(slow)
    let domain = rig.domain
    let generation = domain.fence.generation
    let ring = try EventFD()
    let (own, done) = try rig.unmap(slow)
    while domain.fence.generation == generation {}
    let clock = ContinuousClock()
    var times: [Duration] = []
    for n in UInt64(0)..<10_000 {
      let page = DMAAddress(other + n % 256 * 4096)
      try domain.map(page, byteCount: 4096, to: GuestAddress(other), permissions: .readWrite)
      times.append(clock.measure { _ = try? domain.unmap(from: page, through: DMAAddress(page.rawValue + 4095)) })
    }
    times.sort()
    #expect(times[9_900] < .milliseconds(1), "p99 \(times[9_900]), the longest \(times[9_999])")
    #expect(rig.device.held.load(ordering: .sequentiallyConsistent) == 1)
    #expect(try done.wait(timeout: .zero) == false)
    let areas = try WorkerThread(name: "ring") {
      domain.fence.drain(from: 1 << 20, through: 1 << 20 + 4095)
      ring.signal()
    }
    #expect(try ring.wait(timeout: .milliseconds(100)) == false)
    rig.device.release.signal()
    #expect(try done.wait(timeout: .seconds(20)) && ring.wait(timeout: .seconds(20)))
    own.join()
    areas.join()
  }

  @Test("New chains go on while an unmap waits for an old one")
  func newWorkGoesOn() throws {
    let rig = try Rig()
    let (old, new): (UInt64, UInt64) = (2 << 20, 3 << 20)
    try rig.map(old, .write)
    try rig.map(new, .write)
    try rig.start()
    try rig.post(old)
    let (thread, unmapped) = try rig.unmap(old)
    // The device takes another chain although the unmap has not ended.
    try rig.post(new)
    #expect(rig.device.held.load(ordering: .sequentiallyConsistent) == 2)
    rig.device.release.signal()
    #expect(try unmapped.wait(timeout: .seconds(20)))
    thread.join()
    #expect(try rig.reap(2).count == 2)
  }

  @Test(
    "A chain that names an unmapped page faults at its first missing byte and comes back with length 0 (R087, R094)")
  func fault() throws {
    let rig = try Rig()
    try rig.map(2 << 20)
    try rig.start()
    try rig.offer(2 << 20 + 4000, 200)
    rig.device.release.signal()
    #expect(try rig.reap(1).map(\.length) == [0])
    #expect(rig.domain.faults == [DMAFault(address: DMAAddress(2 << 20 + 4096), access: .write, reason: .unmapped)])
    #expect(rig.byte(2 << 20 + 4000) == 0)
  }

  @Test("Stopping gives back what is in flight, and a queue resumed from its state loses and repeats nothing")
  func stopAndResume() throws {
    let rig = try Rig()
    try rig.map(2 << 20, pages: 256)
    try rig.start()
    try rig.post(2 << 20)
    let state = try #require(rig.runner.stop(0))
    #expect(state.available == 1)
    #expect(state.used == 1)
    #expect(rig.ring.takeUsed().count == 1)
    #expect(!rig.runner.isRunning(0))
    // Made available while it stood still, without a kick that was heard.
    rig.ring.post([LiteralDescriptor(DMAAddress(2 << 20 + 8192), 4096, writable: true)])
    rig.ring.publish()
    try rig.start(resumingAt: state)
    #expect(try rig.device.taken.wait(timeout: .seconds(20)))
    rig.device.release.signal()
    #expect(try rig.reap(1).count == 1)
  }

  @Test("After a reset nothing of the device touches memory (R060)")
  func reset() throws {
    let rig = try Rig()
    try rig.map(2 << 20)
    try rig.start()
    try rig.post(2 << 20)
    rig.runner.reset()
    rig.memory.write([UInt8](repeating: 0, count: 4096), at: GuestAddress(2 << 20))
    rig.device.release.signal()
    rig.kick.signal()
    // No thread may still be awake: an unmap returns at once.
    try rig.domain.unmap(from: DMAAddress(2 << 20), through: DMAAddress(2 << 20 + 4095))
    #expect(rig.memory.bytes(4096, at: GuestAddress(2 << 20)).allSatisfy { $0 == 0 })
    #expect(rig.device.held.load(ordering: .sequentiallyConsistent) == 0)
  }

  @Test("A queue whose ring is not mapped fails alone; the others, and it after a restart, work (R089, R062)")
  func failsAlone() throws {
    let rig = try Rig(queues: 2)
    let bad = QueueLayout(
      size: 16, descriptorArea: DMAAddress(64 << 20), driverArea: DMAAddress(65 << 20), deviceArea: DMAAddress(66 << 20)
    )
    try rig.start(1, bad, kick: try EventFD())
    #expect(try rig.troubles.happened.wait(timeout: .seconds(20)))
    guard case .ring? = rig.troubles.error(1) else {
      return #expect(Bool(false), "queue 1 ended for \(String(describing: rig.troubles.error(1)))")
    }
    try rig.map(2 << 20)
    try rig.start(0)
    try rig.post(2 << 20)
    rig.device.release.signal()
    #expect(try rig.reap(1).count == 1)
    #expect(rig.troubles.error(0) == nil)
    _ = rig.runner.stop(0)
    _ = rig.runner.stop(1)
    let again = makeLiteralRing(rig.layout, features: rig.features, in: LiteralMemory(rig.memory))
    rig.memory.write([UInt8](repeating: 0, count: 16384), at: GuestAddress(1 << 20))
    rig.runner.setCall(1, rig.call)
    try rig.start(1, rig.layout, kick: rig.kick)
    _ = try rig.device.taken.drain()
    try rig.offer(2 << 20, 512, in: again)
    rig.runner.reset()
    #expect(again.takeUsed().map(\.length) == [512])
  }

  @Test("What cannot start says why and leaves nothing running")
  func refusals() throws {
    let rig = try Rig()
    #expect(throws: DeviceError.self) { try rig.start(5, rig.layout) }
    var large = rig.layout
    large.size = 128
    #expect(throws: DeviceError.self) { try rig.start(0, large) }
    var crooked = rig.layout
    crooked.descriptorArea = DMAAddress(crooked.descriptorArea.rawValue + 1)
    #expect(throws: DeviceError.self) { try rig.start(0, crooked) }
    #expect(!rig.runner.isRunning(0))
    let broken = DeviceRunner(try HoldingDevice(.entropy, failing: true), events: rig.troubles, log: .silent)
    #expect(throws: DeviceError.self) {
      try broken.start(QueueStart(index: 0, layout: rig.layout, features: rig.features, space: rig.domain, kick: nil))
    }
    try rig.start()
    #expect(throws: DeviceError.self) { try rig.start() }
  }

  @Test("A kick without an eventfd, and a kick replaced while the queue runs, are heard")
  func kicks() throws {
    let rig = try Rig()
    try rig.map(2 << 20, pages: 256)
    rig.runner.setCall(0, rig.call)
    try rig.start(0, rig.layout)
    for (n, way) in [0, 1].enumerated() {
      if way == 1 { try rig.runner.setKick(0, rig.kick) }
      rig.ring.post([LiteralDescriptor(DMAAddress(2 << 20 + UInt64(n) * 4096), 64, writable: true)])
      rig.ring.publish()
      if way == 0 { rig.runner.kick(0) } else { rig.kick.signal() }
      try rig.expectTaken()
      rig.device.release.signal()
      #expect(try rig.reap(1).count == 1)
    }
    rig.runner.reset()
    #expect(rig.runner.counts[0].requests == 2)
    #expect(rig.runner.counts[0].completions == 2)
  }

  @Test(
    "A driver that brings one request after the other is taken up without a kick for each, and none is lost",
    arguments: [false, true])
  func staysAwake(_ packed: Bool) throws {
    let rig = try Rig(packed: packed)
    rig.runner.setCall(0, rig.call)
    try rig.runner.start(
      QueueStart(
        index: 0, layout: rig.layout, features: packed ? [.version1, .ringPacked] : [.version1],
        space: PhysicalSpace(rig.memory), kick: rig.kick))
    var kicks: UInt64 = 0
    var requests: UInt64 = 0
    // Where other work has the processors, the queue's thread may be off them for as long as it looks: then until it was
    // quick once.
    while requests < 1000 || kicks == requests && requests < 20_000 {
      requests += 1
      rig.ring.post([LiteralDescriptor(DMAAddress(2 << 20), 64, writable: true)])
      if rig.ring.publish() {
        kicks += 1
        rig.kick.signal()
      }
      try #require(try rig.device.taken.wait(timeout: .seconds(20)))
      _ = try rig.device.taken.drain()
      rig.device.release.signal()
      try #require(try rig.reap(1).count == 1)
    }
    #expect(kicks < requests)
    rig.runner.reset()
    #expect(rig.runner.counts[0].completions == requests)
  }
}
