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

/// A back-end on a thread of its own, and a front-end that talks to it.
private final class Served {
  let frontend: Frontend
  private let backend: BackendThread

  init(
    _ policy: AccessPlatformPolicy = .auto, mappings: FrontendMappings = FrontendMappings(),
    translations: TranslationPolicy = .keep
  ) throws {
    backend = try BackendThread(
      TestDevice(queues: [64]) { $0.writable.copy([UInt8](repeating: 0xab, count: 512).span, to: 0) },
      options: BackendOptions(accessPlatform: policy, translations: translations))
    frontend = try Frontend(backend.socket, memory: FrontendMemory(byteCount: 1 << 20), mappings: mappings)
  }

  /// With the bit agreed, memory shared, and so many bytes of it mapped.
  convenience init(
    translated byteCount: UInt64, mappings: FrontendMappings = FrontendMappings(),
    translations: TranslationPolicy = .keep
  ) throws {
    try self.init(mappings: mappings, translations: translations)
    try frontend.negotiate(PlatformTests.platform)
    try frontend.share()
    try map(byteCount)
  }

  deinit {
    frontend.close()
    backend.server.stop()
    backend.join()
  }

  var statistics: ServingReport { backend.server.statistics }

  /// Maps the first bytes of memory from the tests' shift on.
  func map(_ byteCount: UInt64 = 64 << 10, announcing: Bool = false) throws {
    try frontend.map(
      FrontendMapping(address: DMAAddress(PlatformTests.shift), byteCount: byteCount, guestAddress: GuestAddress(0)),
      announcing: announcing)
  }
}

/// The driver of the one queue: rings from guest address 0x1000 on, data where the test says.
private final class Client {
  static let data = GuestAddress(0x8000)
  private var queue: DriverQueue
  let events: FrontendQueue
  private let guest: GuestMemory
  private let shift: UInt64
  private(set) var calls = 0

  init(_ frontend: Frontend, shift: UInt64 = 0) throws {
    let (descriptor, driver, device) = (GuestAddress(0x1000), GuestAddress(0x2000), GuestAddress(0x3000))
    func address(_ guest: GuestAddress) -> DMAAddress { DMAAddress(guest.rawValue &+ shift) }
    let layout = QueueLayout(
      size: 16, descriptorArea: address(descriptor), driverArea: address(driver), deviceArea: address(device))
    guest = frontend.memory.guest
    let zero = [UInt8](repeating: 0, count: 0x3000)
    precondition(guest.copy(zero.span, to: descriptor) == zero.count)
    guard
      let memory = DriverQueueMemory(
        guest, size: 16, features: frontend.features, descriptorArea: descriptor, driverArea: driver, deviceArea: device
      )
    else { preconditionFailure("the test's memory is too small") }
    queue = try DriverQueue(layout: layout, features: frontend.features, memory: memory)
    events = try frontend.startQueue(0, layout: layout)
    self.shift = shift
  }

  /// Lets the device write 64 bytes at a device address; how many it says it wrote.
  func fill(_ address: UInt64) throws -> UInt32? {
    let piece = [DriverBuffer(DMAAddress(address), count: 64)]
    let none: [DriverBuffer] = []
    _ = try queue.add(readable: none.span, writable: piece.span)
    if queue.publish() { events.kick() }
    for _ in 0..<10 {
      if let used = try queue.reap() { return used.written }
      if events.waitForCall(timeout: .seconds(2)) { calls += 1 }
    }
    return nil
  }

  func fillData() throws -> UInt32? { try fill(Self.data.rawValue &+ shift) }

  /// Whether the device wrote at a guest address; what it wrote is wiped.
  func wasFilled(_ address: GuestAddress = data) -> Bool {
    let bytes = guest.bytes(64, at: address)
    guest.write([UInt8](repeating: 0, count: 64), at: address)
    return bytes.allSatisfy { $0 == 0xab }
  }
}

@Suite("ACCESS_PLATFORM between a front-end and the back-end", .timeLimit(.minutes(10))) struct PlatformTests {
  static let shift: UInt64 = 0x40_0000_0000
  static let platform: Features = [.version1, .accessPlatform]

  @Test(
    "The bit is offered unless switched off, and the offer stays the same (R004, R017)",
    arguments: AccessPlatformPolicy.allCases)
  func offer(policy: AccessPlatformPolicy) throws {
    let served = try Served(policy)
    let first = try served.frontend.ask(.getFeatures)
    #expect((first >> 33 & 1 == 1) == (policy != .off))
    #expect(try served.frontend.ask(.getFeatures) == first)
    try served.frontend.negotiate(Self.platform.union(.ringPacked))
    #expect(try served.frontend.ask(.getFeatures) == first)
  }

  @Test("A bit that was not offered is refused (R011)")
  func unoffered() throws {
    let served = try Served(.off)
    try served.frontend.negotiate(.version1)
    #expect(throws: FrontendError.refused("SET_FEATURES", code: 1)) {
      try served.frontend.send(.setFeatures(Features([.version1, .accessPlatform]).word))
    }
    #expect(served.statistics.addressPath != .platform)
  }

  @Test(
    "The bit without a back channel and acknowledgements is refused (R122)",
    arguments: [ProtocolFeatures.replyAck, .backendRequests])
  func withoutChannel(missing: ProtocolFeatures) throws {
    let served = try Served()
    #expect(
      throws: FrontendError.notNegotiated("SET_FEATURES with ACCESS_PLATFORM", needs: "REPLY_ACK and BACKEND_REQ")
    ) {
      try served.frontend.negotiate(
        Self.platform, protocolFeatures: Frontend.usualProtocolFeatures.subtracting(missing))
    }
    // The back-end does not rely on that.
    _ = try? served.frontend.send(.setFeatures(Self.platform.union(Frontend.protocolFeaturesBit).word))
    _ = try? served.frontend.ask(.getFeatures)
    #expect(served.statistics.addressPath != .platform)
  }

  @Test("A back-end told to insist refuses a front-end that leaves the bit out (R130)")
  func insists() throws {
    let served = try Served(.on)
    #expect(throws: FrontendError.refused("SET_FEATURES", code: 1)) { try served.frontend.negotiate(.version1) }
    let willing = try Served(.on)
    try willing.frontend.negotiate(Self.platform)
    #expect(willing.frontend.features.contains(.accessPlatform))
  }

  @Test(
    "Offered and not taken: addresses are physical, and no translation is asked for or reported (R005, R006, R019, R129)"
  )
  func physical() throws {
    let served = try Served()
    try served.frontend.negotiate(.version1)
    try served.frontend.share()
    let client = try Client(served.frontend)
    #expect(try client.fillData() == 64 && client.wasFilled())
    // Outside of memory: a fault that is not reported to the front-end.
    #expect(try client.fill(1 << 40) == 0)
    #expect(served.frontend.counts.misses == 0 && served.frontend.counts.accessFailures == 0)
    #expect(served.statistics.reachableBytes == served.statistics.memoryBytes)
    #expect(throws: FrontendError.refused("IOTLB_MSG", code: 1)) {
      try served.frontend.invalidate(from: DMAAddress(0), through: DMAAddress(4095))
    }
  }

  @Test(
    "Ring addresses are the front-end's own, guest-physical when that is agreed, and device addresses with the bit (R100)",
    arguments: [false, true], [false, true])
  func ringAddresses(platform: Bool, guestAddresses: Bool) throws {
    let served = try Served()
    let wanted = guestAddresses ? Frontend.usualProtocolFeatures.union(.guestAddresses) : Frontend.usualProtocolFeatures
    try served.frontend.negotiate(platform ? Self.platform : .version1, protocolFeatures: wanted)
    try served.frontend.share()
    let shift = platform ? Self.shift : 0
    if platform { try served.map() }
    let client = try Client(served.frontend, shift: shift)
    #expect(try client.fillData() == 64 && client.wasFilled())
    #expect((served.frontend.counts.misses > 0) == platform)
  }

  @Test(
    "With the bit only what is mapped is reached; a fault is told, ends one request, and the queue goes on (R090, R101, R105, R125)"
  )
  func confined() throws {
    let served = try Served(translated: 64 << 10)
    let client = try Client(served.frontend, shift: Self.shift)
    #expect(try client.fillData() == 64 && client.wasFilled())
    // A guest-physical address that exists, and is not mapped.
    #expect(try client.fill(0x20000) == 0)
    #expect(!client.wasFilled(GuestAddress(0x20000)))
    // It comes on a socket of its own, beside the completion.
    #expect(try served.frontend.accessFailed.wait(timeout: .seconds(10)))
    #expect(
      served.frontend.counts.failed.map(\.address) == [0x20000]
        && served.frontend.counts.failed.map(\.permission) == [.write])
    #expect(served.frontend.counts.refusals >= 1)
    #expect(try client.fillData() == 64)
    #expect(served.statistics.reachableBytes <= 64 << 10)
  }

  @Test("A front-end that agreed on in-band notifications kicks and is called by messages")
  func inband() throws {
    let served = try Served()
    try served.frontend.negotiate(
      .version1, protocolFeatures: Frontend.usualProtocolFeatures.union(.inbandNotifications))
    try served.frontend.share()
    let client = try Client(served.frontend)
    for _ in 0..<3 {
      #expect(try client.fillData() == 64 && client.wasFilled())
    }
    #expect(client.calls > 0 || client.events.waitForCall(timeout: .seconds(10)))
  }

  @Test(
    "Told to keep a translation for one request, the back-end sees a page that moved without a word; otherwise it trusts the front-end",
    arguments: TranslationPolicy.allCases)
  func silentFrontend(translations: TranslationPolicy) throws {
    let mappings = FrontendMappings()
    let served = try Served(translated: 32 << 10, mappings: mappings, translations: translations)
    let client = try Client(served.frontend, shift: Self.shift)
    let (place, first, second) = (DMAAddress(0x50_0000_0000), GuestAddress(0x8000), GuestAddress(0x9000))
    #expect(mappings.insert(FrontendMapping(address: place, byteCount: 4096, guestAddress: first)))
    #expect(try client.fill(place.rawValue) == 64)
    #expect(client.wasFilled(first))
    // As QEMU's AMD-Vi does it: no invalidation.
    mappings.remove(from: place, through: DMAAddress(place.rawValue + 4095))
    #expect(mappings.insert(FrontendMapping(address: place, byteCount: 4096, guestAddress: second)))
    #expect(try client.fill(place.rawValue) == 64)
    #expect(client.wasFilled(second) == (translations == .once))
    #expect(client.wasFilled(first) == (translations == .keep))
  }

  @Test("Features do not change while a queue runs: what is refused leaves its translation as it is (R014)")
  func running() throws {
    let served = try Served(translated: 64 << 10)
    let client = try Client(served.frontend, shift: Self.shift)
    #expect(try client.fillData() == 64)
    #expect(throws: FrontendError.refused("SET_FEATURES", code: 1)) {
      try served.frontend.send(.setFeatures(Features.version1.union(Frontend.protocolFeaturesBit).word))
    }
    #expect(try client.fillData() == 64)
    #expect(served.statistics.addressPath == .platform)
  }

  @Test(
    "A reset forgets the bit and every translation; the next driver may take it again or not (R015, R016, R065, R066, R114)"
  )
  func reset() throws {
    let served = try Served()
    for turn in 0..<4 {
      let platform = turn % 2 == 0
      try served.frontend.negotiate(platform ? Self.platform : .version1)
      #expect(served.frontend.features.contains(.accessPlatform) == platform)
      // A reset keeps the memory table.
      if turn == 0 { try served.frontend.share() }
      let shift = platform ? Self.shift : 0
      // Sent at once: an answer to a miss that replaces another would leave nothing mapped for a moment.
      if platform { try served.map(announcing: true) }
      let client = try Client(served.frontend, shift: shift)
      #expect(try client.fillData() == 64 && client.wasFilled(), "turn \(turn)")
      #expect((served.statistics.iotlb.reachableBytes > 0) == platform, "turn \(turn)")
      _ = try served.frontend.stopQueue(0)
      try served.frontend.reset()
      _ = try served.frontend.ask(.getFeatures)
      #expect(served.statistics.iotlb.reachableBytes == 0, "turn \(turn)")
      served.frontend.mappings.remove(from: DMAAddress(0), through: DMAAddress(.max))
    }
  }

  @Test(
    "A miss for a queue that has stopped, and one nobody mapped, end well: the back-end serves the next queue (R064, R123)"
  )
  func stopped() throws {
    let served = try Served()
    try served.frontend.negotiate(Self.platform)
    try served.frontend.share()
    served.frontend.onMiss { _ in .hold }
    try served.map()
    _ = try Client(served.frontend, shift: Self.shift)
    // Its ring is asked for, and the queue stops before the answer.
    #expect(try served.frontend.missHeld.wait(timeout: .seconds(10)))
    _ = try served.frontend.stopQueue(0)
    served.frontend.onMiss { _ in .fromMappings }
    served.frontend.releaseHeldMisses()
    let client = try Client(served.frontend, shift: Self.shift)
    #expect(try client.fillData() == 64 && client.wasFilled())
  }

  @Test(
    "A ring that loses its mapping stops its queue: the driver's side is told, and a reset cures it (R073, R089, R112)")
  func lostRing() throws {
    let served = try Served(translated: 64 << 10)
    let client = try Client(served.frontend, shift: Self.shift)
    #expect(try client.fillData() == 64)
    // Misses are refused from here on, so the ring cannot be resolved again.
    try served.frontend.unmap(from: DMAAddress(0), through: DMAAddress(.max))
    client.events.kick()
    #expect(try client.events.error.wait(timeout: .seconds(10)))
    #expect(try served.frontend.status().contains(.needsReset))
    _ = try served.frontend.stopQueue(0)
    try served.frontend.reset()
    try served.frontend.negotiate(Self.platform)
    try served.map()
    let next = try Client(served.frontend, shift: Self.shift)
    #expect(try next.fillData() == 64)
  }
}
