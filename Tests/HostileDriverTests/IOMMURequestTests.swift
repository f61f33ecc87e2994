import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: an IOMMU's requests", .timeLimit(.minutes(10))) struct IOMMURequestTests {
  private typealias Site = IOMMUSite
  private typealias Bytes = IOMMUBytes
  private static var endpoint: UInt32 { IOMMUSite.attacked.endpoint }
  private static var domain: UInt32 { IOMMUSite.attacked.domain }

  /// Requests that are refused, each with one status.
  private func refuse(
    _ clause: String, _ transport: Transport, without: Features = [], sourceLocation: SourceLocation = #_sourceLocation,
    _ requests: [(bytes: [UInt8], answer: IOMMUAnswer)]
  ) throws {
    try attackIOMMU(clause, on: transport, without: without, sourceLocation: sourceLocation) { session, _ in
      for (bytes, answer) in requests { try session.refuse(bytes, answer) }
      return .requestRefused
    }
  }

  // MARK: Ranges

  @Test(
    "Addresses are outside of the input range, whether that was accepted or not (R156)", arguments: [Transport].modern,
    [Features(), .iommuInputRange])
  func inputRange(_ transport: Transport, _ without: Features) throws {
    let outside: [(UInt64, UInt64)] = [
      (0, 0xfff), (0xf000, 0xffff), (0xf000, 0x1_0fff), (0xffff_f000, 0x1_0000_0fff), (0x1_0000_0000, 0x1_0000_0fff),
      (0, .max), (.max - 4095, .max), (0x8000_0000_0000_0000, 0x8000_0000_0000_0fff),
    ]
    try attackIOMMU("5.13.6.1-2", on: transport, without: without) { session, target in
      for (first, last) in outside {
        try session.refuse(Bytes.map(Self.domain, first, last, Site.trial.physical), .range)
      }
      // To unmap where nothing can be mapped is nothing, or wrong; half a mapping is wrong.
      for (first, last) in [(0, 0xfff), (0x1_0000_0000, .max), (.max, .max)] as [(UInt64, UInt64)] {
        try session.refuse(Bytes.unmap(Self.domain, first, last), .ok, .range)
      }
      try session.refuse(Bytes.unmap(Self.domain, 0, Site.prey.virtual + 0xfff), .range)
      return .requestRefused
    }
  }

  @Test(
    "Domains are outside of their range, whether that was accepted or not", arguments: [Transport].modern,
    [Features(), .iommuDomainRange])
  func domainRange(_ transport: Transport, _ without: Features) throws {
    let outside: [UInt32] = [0, 1, 10, 0x1_0005, 0x8000_0002, .max]
    try attackIOMMU("5.13.6.1-3", on: transport, without: without) { session, _ in
      for number in outside {
        for flags in [0, 1] as [UInt32] {
          try session.refuse(Bytes.attach(number, Self.endpoint, flags: flags), .range)
        }
        try session.refuse(Bytes.detach(number, Self.endpoint), .invalid)
        try session.refuse(
          Bytes.map(number, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical), .noEntry)
        try session.refuse(Bytes.unmap(number, 0, .max), .noEntry)
      }
      return .requestRefused
    }
  }

  // MARK: ATTACH and DETACH

  @Test("ATTACH has reserved bytes that are not 0 (R143)", arguments: [Transport].modern)
  func attachReserved(_ transport: Transport) throws {
    try refuse(
      "5.13.6.3.1-1", transport, (0..<32).map { (Bytes.attach(6, Self.endpoint, reserved: 1 << $0), .invalid) })
  }

  @Test("ATTACH has flags that do not exist, or bypass without the feature (R144)", arguments: [Transport].modern)
  func attachFlags(_ transport: Transport) throws {
    try refuse(
      "5.13.6.3.1-4", transport, (1..<32).map { (Bytes.attach(6, Self.endpoint, flags: 1 << $0 | 1), .invalid) })
    try refuse(
      "5.13.6.3.1-4", transport, without: .iommuBypassConfig, [(Bytes.attach(6, Self.endpoint, flags: 1), .invalid)])
  }

  @Test("ATTACH is to a domain of the other kind (R146)", arguments: [Transport].modern)
  func otherKind(_ transport: Transport) throws {
    try refuse(
      "5.13.6.3.1-3", transport,
      [
        (Bytes.attach(Site.bypassing.domain, Self.endpoint), .invalid),
        (Bytes.attach(Site.witness.domain, Self.endpoint, flags: 1), .invalid),
        (Bytes.attach(Self.domain, Self.endpoint, flags: 1), .invalid),
        (Bytes.attach(Site.bypassing.domain, Site.bypassing.endpoint), .invalid),
      ])
  }

  @Test("An endpoint is detached from a domain that it is not in (R149)", arguments: [Transport].modern)
  func detached(_ transport: Transport) throws {
    try refuse(
      "5.13.6-3", transport,
      [Site.witness.domain, Site.bypassing.domain, 9].map { (Bytes.detach($0, Self.endpoint), .invalid) }
        + [(Bytes.detach(Site.witness.domain, Site.working.endpoint), .invalid)])
  }

  // MARK: MAP

  @Test("MAP ends at its start or before it, or wraps around (R155)", arguments: [Transport].modern)
  func backwards(_ transport: Transport) throws {
    let at = Site.trial.virtual
    let ranges: [(UInt64, UInt64)] = [
      (at, at), (at, at - 1), (at + 4096, at), (at, 0), (at + 4096, at + 4095), (.max - 4095, 0xfff), (.max, 0), (0, 0),
      (at, at &- 4097), (.max, .max),
    ]
    for physical in [0, Site.trial.physical] {
      try refuse("5.13.6.5.1-1", transport, ranges.map { (Bytes.map(Self.domain, $0, $1, physical), .range) })
    }
  }

  @Test("MAP leads to addresses that wrap around (R155)", arguments: [Transport].modern)
  func wraps(_ transport: Transport) throws {
    let at = Site.trial.virtual
    let ranges: [(UInt64, UInt64)] = [(0x1fff, .max - 4095), (0xffff, .max - 8191)]
    try refuse("5.13.6-5", transport, ranges.map { (Bytes.map(Self.domain, at, at + $0, $1), .range) })
  }

  @Test("MAP is over what is mapped (R151)", arguments: [Transport].modern)
  func overlap(_ transport: Transport) throws {
    let at = Site.prey.virtual
    let ranges: [(UInt64, UInt64)] = [
      (at, at + 0x3fff), (at, at + 0xfff), (at + 0x1000, at + 0x1fff), (at + 0x3000, at + 0x4fff),
      (at - 0x1000, at + 0xfff),
      (at - 0x1_0000, at + 0x1_ffff), (0x1_0000, 0xfedf_ffff),
    ]
    try attackIOMMU("5.13.6-5", on: transport) { session, target in
      for (first, last) in ranges {
        try session.refuse(Bytes.map(Self.domain, first, last, Site.trial.physical), .invalid)
      }
      for page in stride(from: UInt64(0), to: 0x4000, by: 4096)
      where !target.reaches(Self.endpoint, at + page, Site.prey.physical + page) {
        throw Failure("a mapping gave way")
      }
      return .requestRefused
    }
  }

  @Test(
    "MAP lacks READ or WRITE, or both: what it does not allow is refused", arguments: [Transport].modern,
    0..<4 as Range<UInt32>)
  func permissions(_ transport: Transport, _ flags: UInt32) throws {
    try attackIOMMU("5.13.6.5.1-2", on: transport) { session, target in
      let (at, to) = Site.trial
      try session.serve(Bytes.map(Self.domain, at, at + 0xfff, to, flags: flags))
      guard target.reaches(Self.endpoint, at, to, .read) == (flags & 1 != 0),
        target.reaches(Self.endpoint, at, to, .write) == (flags & 2 != 0)
      else { throw Failure("flags \(flags) allow something else than they say") }
      return .served
    }
  }

  @Test("MAP has MMIO without the feature (R152)", arguments: [Transport].modern)
  func mmio(_ transport: Transport) throws {
    let (at, to) = Site.trial
    try refuse(
      "5.13.6.5.1-3", transport, without: .iommuMMIO,
      [4, 5, 6, 7].map { (Bytes.map(Self.domain, at, at + 0xfff, to, flags: $0), .invalid) })
  }

  @Test("MAP has flags that do not exist (R152)", arguments: [Transport].modern)
  func mapFlags(_ transport: Transport) throws {
    let (at, to) = Site.trial
    try refuse(
      "5.13.6.5.1-4", transport,
      (3..<32).map { (Bytes.map(Self.domain, at, at + 0xfff, to, flags: 1 << $0 | 3), .invalid) })
  }

  @Test(
    "MAP and UNMAP are of a bypass domain, and of domains that do not exist (R153, R158)", arguments: [Transport].modern
  )
  func noDomain(_ transport: Transport) throws {
    let (at, to) = Site.trial
    let (bypass, none) = (Site.bypassing.domain, [6, 9] as [UInt32])
    try refuse("5.13.6.5.1-5", transport, [(Bytes.map(bypass, at, at + 0xfff, to), .invalid)])
    try refuse(
      "5.13.6.6.1-3", transport,
      [(Bytes.unmap(bypass, at, at + 0xfff), .invalid), (Bytes.unmap(bypass, 0, .max), .invalid)])
    try refuse(
      "5.13.6-3", transport,
      none.flatMap { [(Bytes.map($0, at, at + 0xfff, to), .noEntry), (Bytes.unmap($0, 0, .max), .noEntry)] })
  }

  @Test(
    "MAP leads to where there is no memory, or out of it: endpoints reach what there is, and nothing else",
    arguments: [Transport].modern,
    [UInt32(3), 7])
  func noMemory(_ transport: Transport, _ flags: UInt32) throws {
    try attackIOMMU("5.13.6.5.1-6", on: transport) { session, target in
      let at = Site.trial.virtual
      try session.serve(Bytes.map(Self.domain, at, at + 0xfff, 0x7f_0000_0000, flags: flags))
      try session.serve(Bytes.map(Self.domain, at + 0x1_0000, at + 0x1_1fff, 0x11_0000 - 0x1000, flags: flags))
      guard target.look(Self.endpoint, at) == nil, target.look(Self.endpoint, at + 0x1_1000) == nil else {
        throw Failure("memory is where there is none")
      }
      guard target.reaches(Self.endpoint, at + 0x1_0000, 0x11_0000 - 0x1000) else {
        throw Failure("the last page is not there")
      }
      return .served
    }
  }

  @Test("MAP is over a range that is reserved (R154)", arguments: [Transport].modern)
  func reserved(_ transport: Transport) throws {
    let (first, last) = (Site.reserved.lowerBound, Site.reserved.upperBound)
    let ranges: [(UInt64, UInt64)] = [
      (first, first + 0xfff), (last - 0xfff, last), (first - 0x1000, first + 0xfff), (last - 0xfff, last + 0x1000),
      (0x8000_0000, 0xffff_ffff),
    ]
    try refuse(
      "5.13.6.8.1.1-2", transport, ranges.map { (Bytes.map(Self.domain, $0, $1, Site.trial.physical), .invalid) })
  }

  // MARK: UNMAP

  @Test("UNMAP begins or ends inside of a mapping, or ends before it begins (R157)", arguments: [Transport].modern)
  func halves(_ transport: Transport) throws {
    let at = Site.prey.virtual
    let ranges: [(UInt64, UInt64)] = [
      (at, at + 0xfff), (at + 0x1000, at + 0x3fff), (at + 0x1000, at + 0x1fff), (0, at), (at, at), (at + 0x3fff, .max),
      (at + 1, at + 0x3fff), (at, at + 0x3ffe), (at - 0x1000, at + 0x2fff), (at + 0x3fff, at), (.max, 0),
      (at + 0x4000, at - 1),
    ]
    try attackIOMMU("5.13.6.6.1-1", on: transport) { session, target in
      for (first, last) in ranges { try session.refuse(Bytes.unmap(Self.domain, first, last), .range) }
      // With a whole one beside the half: none of both goes.
      try session.serve(Bytes.map(Self.domain, at - 0x1000, at - 1, Site.trial.physical))
      try session.refuse(Bytes.unmap(Self.domain, at - 0x1000, at + 0xfff), .range)
      guard target.reaches(Self.endpoint, at - 0x1000, Site.trial.physical),
        target.reaches(Self.endpoint, at + 0x3000, Site.prey.physical + 0x3000)
      else { throw Failure("a mapping gave way") }
      return .requestRefused
    }
  }

  @Test("UNMAP has reserved bytes that are not 0 (R158)", arguments: [Transport].modern)
  func unmapReserved(_ transport: Transport) throws {
    let at = Site.prey.virtual
    try refuse(
      "5.13.6.6.1-2", transport,
      (0..<32).map { (Bytes.unmap(Self.domain, at, at + 0x3fff, reserved: 1 << $0), .invalid) })
  }

  // MARK: PROBE

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R036, R145, R149)
    .iommu("Endpoints do not exist, the device's own function among them", "5.13.6-3", on: .modern) { session, _ in
      let own = UInt32(Target.requester.rawValue)
      let none: [UInt32] = [0, 7, 13, own, 0xffff, 0x1_0000 | Self.endpoint, 0x8000_0000 | Self.endpoint, .max]
      let room = Site.probeSize + 4
      for number in none {
        try session.refuse(Bytes.attach(6, number), .noEntry)
        try session.refuse(Bytes.attach(6, number, flags: 1), .noEntry)
        try session.refuse(Bytes.detach(Self.domain, number), .noEntry)
        try session.refuse(Bytes.probe(number), .noEntry, room: room, tail: room - 4)
      }
      return .requestRefused
    },
    .iommu("DETACH has reserved bytes that are not 0: they are ignored", "5.13.6.4.1-1", on: .modern) {
      session, target in
      try session.serve(Bytes.detach(Self.domain, Self.endpoint, reserved: .max))
      guard target.look(Self.endpoint, Site.prey.virtual) == nil else {
        throw Failure("a detached endpoint reaches its domain")
      }
      return .served
    },
    // (R167)
    .iommu("More domains and more mappings are made than the device has", "5.13.6-4", on: .modern) { session, _ in
      try session.serve(Bytes.attach(6, Site.working.endpoint))
      try session.refuse(Bytes.attach(7, 12), .noMemory)
      for page in 0..<16 as Range<UInt64> {
        let first = Site.trial.virtual + page * 4096
        try session.serve(Bytes.map(6, first, first + 0xfff, Site.trial.physical))
      }
      for page in 16..<20 as Range<UInt64> {
        let first = Site.trial.virtual + page * 4096
        try session.refuse(Bytes.map(6, first, first + 0xfff, Site.trial.physical), .noMemory)
      }
      // Three of the twenty that there are for all domains were made before, so one is left.
      try session.serve(Bytes.map(Self.domain, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical))
      try session.refuse(
        Bytes.map(Self.domain, Site.trial.virtual + 0x1000, Site.trial.virtual + 0x1fff, Site.trial.physical), .noMemory
      )
      try session.serve(Bytes.detach(6, Site.working.endpoint))
      return .requestRefused
    },
    // (R150)
    .iommu("MAP is not made of whole pages", "5.13.6-5", on: .modern) { session, _ in
      let (at, to) = Site.trial
      for bit in 0..<12 as Range<UInt64> {
        let off = UInt64(1) << bit
        try session.refuse(Bytes.map(Self.domain, at + off, at + 0x2fff, to), .range)
        try session.refuse(Bytes.map(Self.domain, at, at + 0xfff + off, to), .range)
        try session.refuse(Bytes.map(Self.domain, at, at + 0xfff, to + off), .range)
      }
      return .requestRefused
    },
    // (R160)
    .iommu("PROBE has less room for properties than the device says, or more", "5.13.6.7.1-1", on: .modern) {
      session, target in
      for room in [0, 1, 23, 24, 63] {
        try session.refuse(Bytes.probe(Self.endpoint), .invalid, room: room + 4, tail: room)
        guard target.literal.read(room + 4, at: session.status)[..<room].allSatisfy({ $0 == 0 }) else {
          throw Failure("properties were written")
        }
      }
      for room in [65, 512, 4000] {
        try session.refuse(Bytes.probe(Self.endpoint), .ok, room: room + 4, tail: Site.probeSize)
      }
      return .requestRefused
    },
    // (R160)
    .iommu("PROBE has reserved bytes that are not 0: they are ignored", "5.13.6.7.1-3", on: .modern) { session, _ in
      try session.refuse(
        Bytes.probe(Self.endpoint, reserved: 0xff), .ok, room: Site.probeSize + 4, tail: Site.probeSize)
      return .served
    },
  ]
}
