import DMA
import HostIO
import IOMMUInterface
import Synchronization
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

/// Which way endpoints are turned, and what that waits for.
@Suite("virtio-iommu: endpoints")
struct IOMMUEndpointTests {
  @Test(
    "The field bypass is byte 36 of 40, reads as 0 or 1, and is written only with its feature negotiated (R163)",
    arguments: [false, true])
  func field(initial: Bool) throws {
    let rig = try IOMMURig(IOMMURig.options { $0.bypass = .configured(initial) })
    let all = rig.configuration()
    #expect(all[36] == (initial ? 1 : 0) && all[37...].allSatisfy { $0 == 0 } && rig.device.configurationSize == 40)
    #expect(
      rig.look(8, 0) == (initial ? .success(1) : rig.refused(0)),
      "what it shows is what it does, before anything is written")
    for value in 2...255 as ClosedRange<UInt8> {
      rig.configure([value], at: 36)
      #expect(rig.configuration(36, 1)[0] == (initial ? 1 : 0))
    }
    rig.configure([initial ? 0 : 1], at: 36)
    #expect(
      rig.configuration(36, 1)[0] == (initial ? 0 : 1) && rig.look(8, 0) == (initial ? rig.refused(0) : .success(1)))
    rig.configure(UInt32(initial ? 1 : 0).bytes, at: 36)
    #expect(rig.configuration() == all, "as a driver writes a field of four bytes")
    rig.configure([UInt8](repeating: 1, count: 36), at: 0)
    rig.configure([1, 1, 1], at: 37)
    #expect(rig.configuration() == all)
    let plain = try IOMMURig(IOMMURig.options { $0.bypass = .configured(initial) }, without: .iommuBypassConfig)
    plain.configure([initial ? 0 : 1], at: 36)
    #expect(plain.configuration() == all && plain.look(8, 0) == (initial ? .success(1) : plain.refused(0)))
  }

  /// §5.13.6's list: what is offered, whether it is accepted, the field, and where the endpoint is attached.
  struct BypassCase: Sendable, CustomStringConvertible {
    enum Attachment: CaseIterable { case none, domain, bypassDomain }
    var offered: IOMMUOptions.Bypass
    var accepted: Bool
    var attachment: Attachment
    var description: String { "\(offered), \(accepted ? "accepted" : "not accepted"), \(attachment)" }
    /// Whether the endpoint is in bypass mode.
    var expected: Bool {
      switch (attachment, offered) {
      case (.domain, _): false
      case (.bypassDomain, _): true
      case (.none, .never): false
      case (.none, .configured(let field)): field
      case (.none, .accepted): accepted
      }
    }
    static let all = [IOMMUOptions.Bypass.never, .configured(false), .configured(true), .accepted].flatMap { offered in
      [false, true].flatMap { accepted in
        Attachment.allCases.map { BypassCase(offered: offered, accepted: accepted, attachment: $0) }
      }
    }
  }

  @Test(
    "An endpoint is in bypass mode in the cases of the specification's list, and in no other (R164)",
    arguments: BypassCase.all)
  func truth(one: BypassCase) throws {
    let rig = try IOMMURig(
      IOMMURig.options { $0.bypass = one.offered }, without: one.accepted ? [] : [.iommuBypass, .iommuBypassConfig])
    let canMakeBypassDomains = one.accepted && rig.features.contains(.iommuBypassConfig)
    switch one.attachment {
    case .none: break
    case .domain: #expect(try rig.attach(1, 8) == Status.ok)
    case .bypassDomain:
      #expect(try rig.attach(1, 8, flags: 1) == (canMakeBypassDomains ? Status.ok : Status.invalid))
      guard canMakeBypassDomains else { return }
    }
    #expect(rig.look(8, 4096) == (one.expected ? .success(2) : rig.refused(4096)))
    #expect(rig.look(8, 4096, .write) == (one.expected ? .success(2) : rig.refused(4096, .unmapped, .write)))
  }

  @Test("An endpoint without a domain reaches nothing where bypass is 0, from the start and after a DETACH (R165)")
  func unattached() throws {
    let rig = try IOMMURig()
    #expect(rig.look(8, 0) == rig.refused(0))
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 0) == Status.ok)
    #expect(rig.look(8, 0) == .success(1) && rig.look(9, 0) == rig.refused(0))
    #expect(try rig.detach(1, 8) == Status.ok)
    #expect(rig.look(8, 0) == rig.refused(0))
  }

  @Test(
    "A reset detaches every endpoint and forgets every domain, and leaves bypass as it was (R166)",
    arguments: [false, true])
  func reset(bypass: Bool) throws {
    let rig = try IOMMURig()
    rig.configure([bypass ? 1 : 0], at: 36)
    #expect(
      try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 5) == Status.ok && rig.attach(2, 9, flags: 1) == Status.ok)
    rig.device.reset()
    #expect(rig.device.domains.isEmpty && rig.device.attachments.values.allSatisfy { $0 == nil })
    #expect(rig.configuration(36, 1) == [bypass ? 1 : 0])
    for endpoint in [8, 9] as [UInt32] { #expect(rig.look(endpoint, 0) == (bypass ? .success(1) : rig.refused(0))) }
    rig.configure([bypass ? 0 : 1], at: 36)
    #expect(rig.configuration(36, 1) == [bypass ? 1 : 0], "nothing is negotiated now")
    try rig.restart()
    #expect(try rig.map(1, 0, to: 5) == Status.noEntry && rig.attach(1, 8) == Status.ok)
    #expect(rig.look(8, 0) == rig.refused(0))
  }

  @Test("A reset ends what the old bypass feature let through, until it is accepted again (R164, R166)")
  func resetOfBypass() throws {
    let rig = try IOMMURig(IOMMURig.options { $0.bypass = .accepted })
    #expect(rig.look(8, 0) == .success(1))
    rig.device.reset()
    #expect(rig.look(8, 0) == rig.refused(0))
    rig.device.accepted(rig.device.features)
    #expect(rig.look(8, 0) == .success(1))
  }

  @Test(
    "The status of UNMAP, DETACH and a narrower ATTACH is seen when nothing uses the mapping any more (R159, R149)",
    arguments: [0, 1, 2])
  func complete(how: Int) throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 8) == Status.ok && rig.attach(1, 9) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    let space = try #require(rig.endpoints[8])
    let ring = rig.requests.memory
    let (layout, _) = literalLayout(size: 256, packed: false, at: 0x1000)
    let usedIndex = layout.deviceArea + 2
    let before = LiteralMemory(ring).observe16(at: usedIndex)
    let holding = try EventFD()
    let seen = Mutex<(isThere: Bool, isUsed: Bool)?>(nil)
    // The endpoint's queue, in a round that found the page and is not over.
    let queue = WorkThread {
      var cache = IOTLB(space)
      _ = cache.beginRound()
      let isThere = cache.byte(0) == .success(6)
      holding.signal()
      while !cache.isStale {}
      let isUsed = LiteralMemory(ring).observe16(at: usedIndex) != before
      cache.endRound()
      seen.withLock { $0 = (isThere, isUsed) }
    }
    #expect(try holding.wait(timeout: .seconds(20)))
    switch how {
    case 0: #expect(try rig.unmap(1, 0) == Status.ok)
    case 1: #expect(try rig.detach(1, 8) == Status.ok)
    default: #expect(try rig.attach(2, 8) == Status.ok)
    }
    #expect(queue.join())
    let (isThere, isUsed) = try #require(seen.withLock { $0 })
    #expect(isThere && !isUsed, "the request is not used while the mapping is in use")
    #expect(rig.look(8, 0) == rig.refused(0))
    #expect(LiteralMemory(ring).observe16(at: usedIndex) != before)
  }

  @Test(
    "An endpoint that was there before the unit, one that comes later and one whose number changes are all routed by it (R032)"
  )
  func comesAndGoes() throws {
    let rig = try IOMMURig(endpoints: [])
    let early = EndpointSpace(rig.memory, requester: RequesterID(rawValue: 8), isOpen: true)
    var cache = IOTLB(early)
    func look() -> Result<UInt8, DMAInterruption> {
      _ = cache.beginRound()
      defer { cache.endRound() }
      return cache.byte(0)
    }
    #expect(look() == .success(1), "no IOMMU yet")
    rig.device.adopt(early)
    rig.device.adopt(early)
    #expect(look() == rig.refused(0))
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    #expect(look() == .success(6))
    rig.device.release(early)
    #expect(look() == rig.refused(0, .stopped) && rig.device.domains.isEmpty && rig.device.attachments.isEmpty)
    #expect(try rig.attach(1, 8) == Status.noEntry)
    early.requester = RequesterID(rawValue: 0x300)
    rig.device.adopt(early)
    #expect(look() == rig.refused(0))
    #expect(
      try rig.attach(1, 8) == Status.noEntry && rig.attach(1, 0x300) == Status.ok && rig.map(1, 0, to: 7) == Status.ok)
    #expect(look() == .success(8))
  }

  @Test("Two functions with one number cannot be told apart: they are attached together, and each can go by itself")
  func aliases() throws {
    let rig = try IOMMURig(endpoints: [8])
    let first = try #require(rig.endpoints[8])
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    rig.plug(8)
    #expect(rig.look(8, 0) == .success(6))
    rig.device.release(first)
    #expect(rig.look(8, 0) == .success(6) && rig.device.domains == [1])
    rig.device.release(try #require(rig.endpoints[8]))
    #expect(rig.look(8, 0) == rig.refused(0, .stopped) && rig.device.domains.isEmpty)
  }

  @Test("The device's own function is none of its endpoints: its queues work while everything else is refused (R036)")
  func itself() throws {
    let own = RequesterID(bus: 0, device: 3)
    let memory = try GuestMemory(byteCount: 4 << 20)
    let device = try IOMMUDevice(memory, options: IOMMURig.options { $0.ownRequester = own })
    let space = EndpointSpace(memory, requester: own, isOpen: true)
    let other = EndpointSpace(memory, requester: RequesterID(rawValue: 8), isOpen: true)
    device.adopt(space)
    device.adopt(other)
    let rig = try DeviceRig(device, memoryBytes: 1 << 20) { ring in
      // The queue's addresses are what its own function reaches.
      let behind = EndpointSpace(ring, requester: own, isOpen: true)
      device.adopt(behind)
      return behind
    }
    let attach: [UInt8] = [1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    #expect(try rig.perform(readable: [attach], writable: [4]).bytes == [0, 0, 0, 0])
    let itself: [UInt8] = [1, 0, 0, 0, 1, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    #expect(try rig.perform(readable: [itself], writable: [4]).bytes == [6, 0, 0, 0])
    #expect(device.attachments.count == 1)
  }

  @Test("Options that contradict themselves are refused in words")
  func options() throws {
    let memory = try GuestMemory(byteCount: 4096)
    let changes: [(inout IOMMUOptions) -> Void] = [
      { $0.inputRange = 0x1001...0x1fff }, { $0.inputRange = 0x1000...0x1ffe }, { $0.maxDomains = 0 },
      { $0.maxMappings = 0 },
      { $0.maxMappingsPerDomain = 0 }, { $0.maxFaultsPerSecond = 0 },
      {
        $0.probeSize = 23
        $0.reservedMemory = [IOMMUReservedMemory(0...1)]
      },
      { $0.reservedMemory = [IOMMUReservedMemory(0...9), IOMMUReservedMemory(9...12)] },
      {
        $0.reservedMemoryOf = [
          RequesterID(rawValue: 1): [IOMMUReservedMemory(0...9, .msi), IOMMUReservedMemory(10...12, .msi)]
        ]
      },
    ]
    for change in changes {
      #expect(throws: DeviceError.self) { try IOMMUDevice(memory, options: IOMMURig.options(change)) }
    }
  }
}
