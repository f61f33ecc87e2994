import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioDrivers
import VirtioEntropy
import VirtioTestKit

/// Writes used entries by hand, as a device would that keeps no rules. Addresses are physical.
private struct Forger {
  let memory: GuestMemory
  let layout: QueueLayout
  let packed: Bool

  private func put(_ value: UInt64, _ bytes: Int, at address: UInt64) {
    let list = (0..<bytes).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    precondition(memory.copy(list.span, to: GuestAddress(address)) == bytes)
  }

  /// Entry `n` of the first lap says that `id` was used with `written` bytes.
  func use(_ n: UInt64, id: UInt32, written: UInt32, slots: UInt64 = 1) {
    if packed {
      let at = layout.descriptorArea.rawValue + 16 * n * slots
      put(UInt64(written), 4, at: at + 8)
      put(UInt64(id), 2, at: at + 12)
      put(0x8082, 2, at: at + 14)
    } else {
      let used = layout.deviceArea.rawValue
      put(UInt64(id), 4, at: used + 4 + 8 * n)
      put(UInt64(written), 4, at: used + 8 + 8 * n)
      put(n + 1, 2, at: used + 2)
    }
  }

  /// The used index says more than was ever available.
  func overrun() { put(40, 2, at: layout.deviceArea.rawValue + 2) }
}

@Suite("A driver survives its device")
struct HostileDeviceTests {
  private struct Scene {
    let rig: DriverRig
    let disk: Disk
    let transport: InProcessTransport
    let driver: BlockDriver
    let forger: Forger
    let guest: GuestAddress

    init(_ ring: RingKind) throws {
      (rig, disk, transport, driver) = try DriverRig.withDisk(.direct, ring.options(withheld: .inOrder))
      transport.isDeaf = true
      forger = Forger(memory: rig.memory, layout: transport.layouts[0]!, packed: ring.packed)
      guest = try rig.buffer(512, .fromDevice)
    }

    /// The first request's ID is 0, direct or indirect, split or packed.
    func read(_ forge: @escaping () -> Void) throws(DriverError) {
      transport.afterNotify = forge
      try driver.read(0, into: [GuestSegment(guest, count: 512)].span)
    }
  }

  @Test(
    "A used ID that the device does not have ends the queue, not the driver; after a stop a new driver works",
    arguments: RingKind.all)
  func wrongID(ring: RingKind) throws {
    let scene = try Scene(ring)
    #expect(throws: DriverError.queue(.usedID(1))) { try scene.read { scene.forger.use(0, id: 1, written: 513) } }
    // The request is still the device's; nothing is taken or given any more.
    #expect(throws: DriverError.queue(.broken)) { try scene.driver.flush() }
    #expect(scene.driver.outstanding == 1)
    try scene.driver.stop()
    scene.transport.isDeaf = false
    scene.transport.afterNotify = {}
    let next = try BlockDriver(scene.transport, on: scene.rig.platform(), options: ring.options())
    try next.read(0, into: [GuestSegment(scene.guest, count: 512)].span)
  }

  @Test("A used length beyond the buffer ends the queue", arguments: RingKind.all)
  func longLength(ring: RingKind) throws {
    let scene = try Scene(ring)
    #expect(throws: DriverError.queue(.usedLength(514, room: 513))) {
      try scene.read { scene.forger.use(0, id: 0, written: 514) }
    }
  }

  @Test("A used index beyond what is available ends the queue")
  func overrun() throws {
    let scene = try Scene(RingKind.all[0])
    #expect(throws: DriverError.queue(.usedIndex(40, expected: 0))) { try scene.read { scene.forger.overrun() } }
  }

  @Test("A request that the device calls done without a status has failed", arguments: RingKind.all)
  func noStatus(ring: RingKind) throws {
    let scene = try Scene(ring)
    #expect(throws: DriverError.status(0xff)) { try scene.read { scene.forger.use(0, id: 0, written: 513) } }
    #expect(scene.driver.outstanding == 0)
  }

  @Test("A read that is OK by its status and short by its length has failed", arguments: RingKind.all)
  func shortLength(ring: RingKind) throws {
    let (rig, _, transport, driver) = try DriverRig.withDisk(.direct, ring.options(withheld: .inOrder))
    let forger = Forger(memory: rig.memory, layout: try #require(transport.layouts[0]), packed: ring.packed)
    // The honest device has answered; then its length is falsified.
    transport.afterNotify = { forger.use(0, id: 0, written: 100) }
    let guest = try rig.buffer(512, .fromDevice)
    #expect(throws: DriverError.incomplete(written: 100, needed: 513)) {
      try driver.read(0, into: [GuestSegment(guest, count: 512)].span)
    }
  }

  @Test("A device that never answers costs the time allowed and no more", arguments: RingKind.all)
  func silence(ring: RingKind) throws {
    let scene = try Scene(ring)
    var pauses = 0
    let transport = scene.rig.transport(scene.disk.device)
    var options = ring.options()
    options.wait = BoundedWait(attempts: 50) { pauses += 1 }
    let driver = try BlockDriver(transport, on: scene.rig.platform(), options: options)
    transport.isDeaf = true
    #expect(throws: DriverError.timeout) { try driver.flush() }
    #expect(pauses == 49)
  }

  @Test("A device that fails a request says so, and the queue goes on", arguments: RingKind.all)
  func failedRequest(ring: RingKind) throws {
    let scene = try Scene(ring)
    // Memory that is not there: the device faults, and has nothing but the status to write.
    scene.transport.isDeaf = false
    let nowhere = GuestAddress(1 << 40)
    #expect(throws: DriverError.ioError) { try scene.driver.read(0, into: [GuestSegment(nowhere, count: 512)].span) }
    try scene.driver.read(0, into: [GuestSegment(scene.guest, count: 512)].span)
  }

  @Test("A device that asks to be reset is told from one that is slow")
  func needsReset() throws {
    let (rig, _, _, driver) = try DriverRig.withDisk(.strict, RingKind.all[0].options())
    // The ring goes: the device can only give up.
    rig.domain.removeAll()
    #expect(throws: DriverError.needsReset) { try driver.flush() }
    #expect(rig.domain.faults.count > 0)
  }

  @Test("An entropy device that brings nothing, or another kind of device, is an error")
  func entropy() throws {
    let rig = try DriverRig(.direct)
    let transport = rig.transport(EntropyDevice())
    let driver = try EntropyDriver(transport, on: rig.platform(), options: RingKind.all[0].options(withheld: .inOrder))
    transport.isDeaf = true
    let forger = Forger(memory: rig.memory, layout: try #require(transport.layouts[0]), packed: false)
    let guest = try rig.buffer(64, .fromDevice)
    transport.afterNotify = { forger.use(0, id: 0, written: 0) }
    #expect(throws: DriverError.incomplete(written: 0, needed: 1)) {
      _ = try driver.fill([GuestSegment(guest, count: 64)].span)
    }
    // The device wants no notification for this one.
    transport.afterNotify = {}
    let tag = try driver.submit([GuestSegment(guest, count: 64)].span)
    driver.publish()
    forger.use(1, id: 0, written: 65)
    #expect(throws: DriverError.queue(.usedLength(65, room: 64))) { _ = try driver.complete(tag) }
    #expect(throws: DriverError.wrongDevice(.entropy)) { _ = try BlockDriver(transport, on: rig.platform()) }
  }
}

@Suite("A driver takes its device over")
struct InitializationTests {
  @Test(
    "Reset, ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK are written in this order, and queues are enabled in between"
  )
  func order() throws {
    let rig = try DriverRig(.strict)
    let transport = rig.transport(EntropyDevice())
    let driver = try EntropyDriver(transport, on: rig.platform(), options: RingKind.all[0].options())
    #expect(
      transport.statuses == [
        [], .acknowledge, [.acknowledge, .driver], [.acknowledge, .driver, .featuresOK],
        [.acknowledge, .driver, .featuresOK, .driverOK],
      ])
    #expect(driver.features == transport.accepted && transport.accepted.isSubset(of: transport.offered))
    try driver.stop()
    #expect(transport.statuses.last == [])
  }

  @Test("A reset that takes its time is waited for, and one that never ends is not")
  func reset() throws {
    let rig = try DriverRig(.strict)
    let transport = rig.transport(EntropyDevice())
    var options = RingKind.all[0].options()
    options.wait = BoundedWait(attempts: 20)
    transport.slowReset = 15
    _ = try EntropyDriver(transport, on: rig.platform(), options: options)
    transport.slowReset = 25
    #expect(throws: DriverError.reset(.acknowledge)) {
      _ = try EntropyDriver(transport, on: rig.platform(), options: options)
    }
  }

  @Test("A device that clears FEATURES_OK is given up, with FAILED and no memory")
  func features() throws {
    let rig = try DriverRig(.strict)
    let free = rig.pages.freeBytes
    let transport = rig.transport(EntropyDevice())
    transport.refusesFeatures = true
    #expect {
      _ = try EntropyDriver(transport, on: rig.platform(), options: RingKind.all[0].options())
    } throws: { if case .features? = $0 as? DriverError { true } else { false } }
    #expect(transport.statuses.last == [.acknowledge, .driver, .failed])
    #expect(rig.pages.freeBytes == free && rig.domain.mappings == 0)
  }

  @Test("A driver that cannot get its memory gives the device up and leaves none to it", arguments: 0..<4)
  func noMemory(left: Int) throws {
    let rig = try DriverRig(.strict)
    let free = rig.pages.freeBytes
    rig.iommu.mapsLeft = left
    let disk = try Disk()
    let transport = rig.transport(disk.device)
    #expect(throws: DriverError.self) {
      _ = try BlockDriver(transport, on: rig.platform(), options: RingKind.all[1].options())
    }
    #expect(transport.statuses.last?.contains(.failed) == true)
    #expect(rig.pages.freeBytes == free && rig.domain.mappings == 0 && rig.addresses.freeBytes > 0)
  }

  @Test("A device without the queue is given up")
  func noQueue() throws {
    let rig = try DriverRig(.strict)
    let transport = rig.transport(TestDevice(queues: []) { _ in 0 })
    #expect(throws: DriverError.noQueue(0)) { _ = try EntropyDriver(transport, on: rig.platform()) }
    #expect(transport.statuses.last?.contains(.failed) == true)
  }
}
