import DMA
import IOMMUInterface
import MachineKit
import Testing
import Virtio
import VirtioTestKit

/// How a virtio-iommu answered a request.
enum IOMMUAnswer: Equatable {
  /// The tail was written.
  case status(UInt8)
  /// The buffer came back as it was, with 0 bytes written.
  case untouched
  case stopped

  static let ok = status(0), unsupported = status(2), invalid = status(4), range = status(5), noEntry = status(6),
    noMemory = status(8)
}

/// As `attack`, of a virtio-iommu that a correct driver has set up: no attack changes that driver's mappings.
func attackIOMMU(
  _ clause: String, on transport: Transport, without: Features = [], sourceLocation: SourceLocation = #_sourceLocation,
  _ body: (Session, Target) throws -> Outcome
) throws {
  try attack(clause, on: transport, Preparation(kind: .iommu, without: without), sourceLocation: sourceLocation) {
    session, _ in try session.settled(body)
  }
}

extension Attack {
  /// A row of such an attack.
  static func iommu(
    _ sentence: String, _ clause: String, on transports: [Transport], without: Features = [],
    sourceLocation: SourceLocation = #_sourceLocation, _ violation: @escaping Violation
  ) -> Attack {
    Attack(sentence, clause, on: transports, without: without, kind: .iommu, sourceLocation: sourceLocation) {
      session, _ in try session.settled(violation)
    }
  }
}

extension Session {
  // MARK: Requests

  /// Sends a request with so much room for the answer, and looks for a tail at `tail`.
  func ask(_ request: [UInt8], room: Int = 4, tail: Int = 0) throws -> IOMMUAnswer {
    if !request.isEmpty { target.literal.write(request, at: header) }
    var chain: [LiteralDescriptor] = []
    if !request.isEmpty { chain.append(LiteralDescriptor(header, UInt32(request.count))) }
    if room > 0 { chain.append(LiteralDescriptor(status, UInt32(room), writable: true)) }
    return try send(chain, room: room, tail: tail)
  }

  /// Sends a request that is in its place already.
  func send(_ chain: [LiteralDescriptor], room: Int = 4, tail: Int = 0) throws -> IOMMUAnswer {
    target.literal.write([UInt8](repeating: 0xee, count: max(room, 1)), at: status)
    if room > 0 { target.allow(status, room) }
    _ = ring.post(chain)
    switch show() {
    case .stopped: return .stopped
    case .nothing: throw Wedged("a request is not answered")
    case .used(let used):
      let bytes = target.literal.read(max(room, 1), at: status)
      guard used.count == 1 else { throw Failure("a request is used \(used.count) times") }
      if used[0].length == 0 {
        guard bytes.allSatisfy({ $0 == 0xee }) else { throw Failure("the device wrote, and says that it did not") }
        return .untouched
      }
      guard used[0].length == UInt32(tail + 4), bytes.count >= tail + 4 else {
        throw Failure("\(used[0].length) bytes are said to be written")
      }
      guard bytes[(tail + 1)..<(tail + 4)].allSatisfy({ $0 == 0 }) else {
        throw Failure("the tail's reserved bytes are not 0")
      }
      guard bytes[(tail + 4)...].allSatisfy({ $0 == 0xee }) else { throw Failure("the device wrote behind the tail") }
      return .status(bytes[tail])
    }
  }

  /// Sends a request that must end in one of these ways, and must change nothing.
  func refuse(_ request: [UInt8], _ expected: IOMMUAnswer..., room: Int = 4, tail: Int = 0) throws {
    let before = target.inventory
    let answer = try ask(request, room: room, tail: tail)
    guard expected.contains(answer) else {
      throw Failure("request \(request) with room for \(room) is answered with \(answer)")
    }
    guard target.inventory == before else { throw Failure("request \(request), which was refused, changed something") }
    try checkWitnesses()
  }

  /// Sends a request that must be served.
  func serve(_ request: [UInt8]) throws {
    let answer = try ask(request)
    guard answer == .ok else { throw Failure("request \(request) is answered with \(answer)") }
  }

  // MARK: What a correct driver does

  /// Sets up what attacks must leave alone, and looks afterwards whether they did.
  func settled(_ body: (Session, Target) throws -> Outcome) throws -> Outcome {
    try settle()
    let outcome = try body(self, target)
    try checkWitnesses()
    return outcome
  }

  /// Attaches and maps what attacks must leave alone, and what they are made with.
  func settle() throws {
    let site = IOMMUSite.self
    try serve(IOMMUBytes.attach(site.witness.domain, site.witness.endpoint))
    if features.contains(.iommuBypassConfig) {
      try serve(IOMMUBytes.attach(site.bypassing.domain, site.bypassing.endpoint, flags: 1))
    }
    try serve(IOMMUBytes.attach(site.attacked.domain, site.attacked.endpoint))
    guard features.contains(.iommuMapUnmap) else { return }
    try serve(
      IOMMUBytes.map(site.witness.domain, site.mapped.virtual, site.mapped.virtual + 0x1fff, site.mapped.physical))
    try serve(
      IOMMUBytes.map(
        site.witness.domain, site.readOnly.virtual, site.readOnly.virtual + 0xfff, site.readOnly.physical, flags: 1))
    try serve(IOMMUBytes.map(site.attacked.domain, site.prey.virtual, site.prey.virtual + 0x3fff, site.prey.physical))
    try checkWitnesses()
  }

  /// Whether those translate as they were mapped.
  func checkWitnesses() throws {
    let (one, other, site) = (IOMMUSite.witness.endpoint, IOMMUSite.bypassing.endpoint, IOMMUSite.self)
    let maps = features.contains(.iommuMapUnmap)
    for access in [DMAAccess.read, .write] {
      for page in [0, 0x1000] as [UInt64] {
        guard maps == target.reaches(one, site.mapped.virtual + page, site.mapped.physical + page, access) else {
          throw Failure("another domain's mapping is not what it was")
        }
      }
    }
    guard maps == target.reaches(one, site.readOnly.virtual, site.readOnly.physical),
      target.look(one, site.readOnly.virtual, .write) == nil, target.look(one, site.mapped.virtual - 1) == nil,
      target.look(one, site.mapped.virtual + 0x2000) == nil, target.look(one, site.prey.virtual) == nil,
      target.look(one, site.bypassed) == nil
    else { throw Failure("another domain's endpoint reaches something else than it did") }
    guard features.contains(.iommuBypassConfig) == target.reaches(other, site.bypassed, site.bypassed) else {
      throw Failure("a bypass domain's endpoint reaches something else than it did")
    }
    guard target.look(site.working.endpoint, site.bypassed) == nil, target.look(12, site.bypassed) == nil else {
      throw Failure("an endpoint without a domain reaches memory")
    }
  }

  /// Whether a domain is made, mapped, unmapped and left as it should be, and a fault reported.
  func iommuWorks() -> Bool {
    let (endpoint, domain) = IOMMUSite.working
    let (virtual, physical) = IOMMUSite.trial
    let room = IOMMUSite.probeSize + 4
    do {
      guard try ask(IOMMUBytes.probe(endpoint), room: room, tail: room - 4) == .ok,
        try ask(IOMMUBytes.attach(domain, endpoint)) == .ok
      else { return false }
      if features.contains(.iommuMapUnmap) {
        guard try ask(IOMMUBytes.map(domain, virtual, virtual + 0x1fff, physical)) == .ok,
          target.reaches(endpoint, virtual + 0x1000, physical + 0x1000),
          try ask(IOMMUBytes.unmap(domain, virtual, virtual + 0x1fff)) == .ok
        else { return false }
      }
      guard target.look(endpoint, virtual) == nil, try ask(IOMMUBytes.detach(domain, endpoint)) == .ok else {
        return false
      }
      return target.look(endpoint, virtual) == nil && reportsFault(endpoint, 0x5000_0000 + UInt64(round) * 4096)
    } catch { return false }
  }

  // MARK: Events

  /// Lets an endpoint run into nothing.
  func fault(_ endpoint: UInt32, _ address: UInt64) {
    target.endpoints[endpoint]?.report(DMAFault(address: DMAAddress(address), access: .read, reason: .unmapped))
  }

  /// The event queue's record (§5.13.6.9) of that.
  func record(_ endpoint: UInt32, _ address: UInt64, reason: UInt8 = 1) -> [UInt8] {
    [reason, 0, 0, 0] + IOMMUBytes.le(UInt32(0x101)) + IOMMUBytes.le(endpoint) + [0, 0, 0, 0] + IOMMUBytes.le(address)
  }

  /// Shows an event buffer.
  func offer(_ chain: [LiteralDescriptor]) {
    guard let events else { return }
    for piece in chain where piece.isWritable && piece.address.rawValue < 0x11_0000 {
      target.allow(piece.address, Int(piece.length))
    }
    events.post(chain)
    events.publish()
    target.driver.notify(1, data: 0)
  }

  /// Waits until so many event buffers came back: their lengths. nil: the device gave the queue up, or they do not.
  func usedEvents(_ count: Int) -> [UInt32]? {
    guard let events else { return nil }
    var used: [LiteralUsed] = []
    let driver = target.driver
    let came = target.interrupts.poll {
      used += events.takeUsed()
      return used.count >= count || driver.status.contains(.needsReset)
    }
    return came && used.count >= count ? used.map(\.length) : nil
  }

  /// Whether a fault is reported, behind others that wait, and behind buffers that are too small for any.
  private func reportsFault(_ endpoint: UInt32, _ address: UInt64) -> Bool {
    guard let events else { return false }
    events.wantCalls()
    fault(endpoint, address)
    for _ in 0..<300 {
      // A report that waits for room waits for a buffer that cannot be used.
      if events.free == 0 { guard usedEvents(1) != nil else { return false } }
      target.literal.write([UInt8](repeating: 0xee, count: 32), at: report)
      offer([LiteralDescriptor(report, 24, writable: true)])
      var lengths: [UInt32] = []
      while !lengths.contains(where: { $0 != 0 }) {
        guard let more = usedEvents(1) else { return false }
        lengths += more
      }
      guard lengths.count(where: { $0 != 0 }) == 1, lengths.contains(24),
        target.literal.read(8, at: report + 24).allSatisfy({ $0 == 0xee })
      else { return false }
      if target.literal.read(24, at: report) == record(endpoint, address) { return true }
    }
    return false
  }
}
