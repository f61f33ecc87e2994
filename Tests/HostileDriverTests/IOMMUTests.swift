import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioIOMMU
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: an IOMMU's features, configuration and framing", .timeLimit(.minutes(10))) struct IOMMUTests {
  private typealias Site = IOMMUSite
  private static func preparation(_ stage: Preparation.Stage, without: Features = []) -> Preparation {
    Preparation(kind: .iommu, stage: stage, without: without)
  }

  private static func configuration(_ target: Target) -> [UInt8] {
    target.driver.configuration(IOMMULayout.configurationSize)
  }

  @Test(
    "Read-only fields are written, whole and in parts, and what is behind them ", arguments: [Transport].modern,
    [Features(), .iommuBypassConfig])
  func readOnly(_ transport: Transport, _ without: Features) throws {
    try attackIOMMU("5.13.4.1-1", on: transport, without: without) { _, target in
      let before = Self.configuration(target)
      for width in [1, 2, 4, 8] {
        for value in [0, 0xa5, 0xff] as [UInt8] {
          for at in Array(0..<36) + [37, 40, 44, 255, 4000] where at >= 36 || at + width <= 36 {
            let bytes = [UInt8](repeating: value, count: width)
            target.driver.writeConfiguration(at: at, from: bytes.span)
          }
        }
      }
      guard Self.configuration(target) == before else { throw Failure("a field changed") }
      return .untouched
    }
  }

  @Test(
    "bypass is written before features are settled, by a driver that will have it and by one that will not",
    arguments: [Transport].modern,
    [Features(), .iommuBypassConfig])
  func early(_ transport: Transport, _ without: Features) throws {
    try attack("3.1.1-2", on: transport, Self.preparation(.found, without: without)) { session, target in
      target.driver.writeConfiguration(at: 36, from: [1].span)
      target.driver.status = []
      target.driver.writeConfiguration(at: 36, from: [1].span)
      target.driver.status = [.acknowledge, .driver]
      target.driver.accept(session.features)
      target.driver.writeConfiguration(at: 36, from: [1].span)
      guard Self.configuration(target)[36] == 0, target.look(Site.working.endpoint, Site.bypassed) == nil else {
        throw Failure("bypass changed")
      }
      try session.begin()
      try session.settle()
      return .untouched
    }
  }

  @Test(
    "A request comes before FEATURES_OK, and before DRIVER_OK", arguments: [Transport].modern,
    [Preparation.Stage.found, .enabled])
  func before(_ transport: Transport, _ stage: Preparation.Stage) throws {
    try attack("3.1.1-7", on: transport, Self.preparation(stage)) { session, target in
      if stage == .found {
        target.meet()
        session.enable()
      }
      target.literal.write(
        IOMMUBytes.attach(Site.attacked.domain, Site.attacked.endpoint, flags: 1), at: session.header)
      target.allow(session.status, 4)
      _ = session.ring.post([
        LiteralDescriptor(session.header, 20), LiteralDescriptor(session.status, 4, writable: true),
      ])
      session.ring.publish()
      for _ in 0..<100 { session.notify() }
      guard !target.control.isRunning(0), session.ring.takeUsed().isEmpty, target.unit?.domains == [] else {
        throw Failure("a request was served too early")
      }
      guard stage == .enabled else { return .refused }
      session.goLive()
      guard case .used(let used) = session.answer(), used.first?.length == 4 else { return .noAnswer }
      guard target.unit?.domains == [Site.attacked.domain] else { throw Failure("a request that waited was not done") }
      return .served
    }
  }

  @Test("Requests of every type are cut off, or have no room for a tail (R161)", arguments: [Transport].modern, 0..<5)
  func cut(_ transport: Transport, _ which: Int) throws {
    try attackIOMMU("5.13.6-1", on: transport) { session, _ in
      let (endpoint, domain) = Site.attacked
      let whole = [
        IOMMUBytes.attach(6, endpoint), IOMMUBytes.detach(domain, endpoint),
        IOMMUBytes.map(domain, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical),
        IOMMUBytes.unmap(domain, Site.prey.virtual, Site.prey.virtual + 0x3fff), IOMMUBytes.probe(endpoint),
      ][which]
      for count in 0..<whole.count { try session.refuse(Array(whole[..<count]), .untouched) }
      for room in 0..<4 { try session.refuse(whole, .untouched, room: room) }
      return .requestRefused
    }
  }

  @Test(
    "A request has more bytes than its type, and its pieces are two bytes each (§5.13.6)",
    arguments: [Transport].modern,
    [false, true])
  func framed(_ transport: Transport, _ pieces: Bool) throws {
    try attackIOMMU("5.13.6-1", on: transport) { session, target in
      let request = IOMMUBytes.attach(Site.attacked.domain, 12)
      guard pieces else {
        try session.serve(request + [UInt8](repeating: 0xff, count: 4000))
        try session.serve(IOMMUBytes.detach(Site.attacked.domain, 12))
        return .served
      }
      target.literal.write(request, at: session.header)
      let chain =
        (0..<10).map { LiteralDescriptor(session.header + 2 * $0, 2) }
        + (0..<4).map { LiteralDescriptor(session.status + $0, 1, writable: true) }
      guard try session.send(chain) == .ok, target.unit?.attachments[RequesterID(rawValue: 12)] == Site.attacked.domain
      else {
        throw Failure("a request in pieces is not done")
      }
      try session.serve(IOMMUBytes.detach(Site.attacked.domain, 12))
      return .served
    }
  }

  @Test("A request for memory that is not there, or an answer into it", arguments: [Transport].modern, [false, true])
  func nowhere(_ transport: Transport, _ answer: Bool) throws {
    try attackIOMMU("5.13.6-1", on: transport) { session, target in
      target.literal.write(IOMMUBytes.detach(Site.attacked.domain, Site.attacked.endpoint), at: session.header)
      let void = DMAAddress(0x7f_0000_0000)
      _ = session.ring.post([
        LiteralDescriptor(answer ? session.header : void, 20),
        LiteralDescriptor(answer ? void : session.status, 4, writable: true),
      ])
      target.allow(session.status, 4)
      switch session.show() {
      case .stopped: return .stopped
      case .nothing: return .noAnswer
      case .used(let used):
        guard used.first?.length == 0 else { throw Failure("something was made of it") }
        return .requestRefused
      }
    }
  }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R161)
    .iommu("MAP and UNMAP are sent without the feature", "5.13.5.1-1", on: .modern, without: .iommuMapUnmap) {
      session, _ in
      try session.refuse(
        IOMMUBytes.map(Site.attacked.domain, Site.prey.virtual, Site.prey.virtual + 0xfff, Site.prey.physical),
        .untouched)
      try session.refuse(IOMMUBytes.unmap(Site.attacked.domain, 0, .max), .untouched)
      return .requestRefused
    },
    // (R161)
    .iommu("Types that do not exist", "5.13.6-2", on: .modern) { session, _ in
      for type in [0] + Array(6...255) as [UInt8] {
        let answer = try session.ask([type, 0, 0, 0] + [UInt8](repeating: 1, count: 68))
        guard answer == .untouched else { throw Failure("type \(type) is answered with \(answer)") }
      }
      return .requestRefused
    },
    Attack(
      "The old feature for bypass is accepted where the new one is offered", "2.2.1-1", on: .modern, stage: .found,
      kind: .iommu
    ) { session, target in
      try target.checkRefusal(of: session.features.union(.iommuBypass))
      guard target.look(Site.working.endpoint, Site.bypassed) == nil else {
        throw Failure("an endpoint was let through")
      }
      return .refused
    },
    .iommu("bypass is written without the feature", "5.13.4.1-1", on: .modern, without: .iommuBypassConfig) {
      _, target in
      for value in [1, 0, 1] as [UInt8] {
        target.driver.writeConfiguration(at: 36, from: [value].span)
        guard configuration(target)[36] == 0 else { throw Failure("bypass changed") }
      }
      return .untouched
    },
    .iommu("bypass is neither 0 nor 1", "5.13.4.1-2", on: .modern) { session, target in
      for start in [1, 0] as [UInt8] {
        target.driver.writeConfiguration(at: 36, from: [start].span)
        for value in 2...255 as ClosedRange<UInt8> {
          target.driver.writeConfiguration(at: 36, from: [value].span)
          guard configuration(target)[36] == start else { throw Failure("bypass took \(value)") }
        }
        for (at, count) in [(36, 4), (35, 2), (32, 8)] {
          let bytes = [UInt8](repeating: 0xfe, count: count)
          target.driver.writeConfiguration(at: at, from: bytes.span)
          guard configuration(target)[36] == start else { throw Failure("bypass took \(bytes)") }
        }
      }
      try session.checkWitnesses()
      // And what it may be works, there and back.
      target.driver.writeConfiguration(at: 36, from: [1].span)
      guard target.reaches(Site.working.endpoint, Site.bypassed, Site.bypassed) else {
        throw Failure("bypass did nothing")
      }
      target.driver.writeConfiguration(at: 36, from: [0].span)
      return .untouched
    },
    .iommu("A driver maps, never unmaps, and detaches: nothing of it is left", "5.13.5.1-1", on: .modern) {
      session, target in
      let (endpoint, domain) = Site.attacked
      try session.serve(IOMMUBytes.detach(domain, endpoint))
      try session.serve(IOMMUBytes.attach(domain, endpoint))
      guard target.unit?.mappings(of: domain) == 0, target.look(endpoint, Site.prey.virtual) == nil else {
        throw Failure("mappings outlive their domain")
      }
      return .served
    },
    .iommu("The head's reserved bytes are not 0: they are ignored", "5.13.6.1-4", on: .modern) { session, target in
      for request in [
        IOMMUBytes.attach(6, 12),
        IOMMUBytes.map(6, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical),
        IOMMUBytes.unmap(6, Site.trial.virtual, Site.trial.virtual + 0xfff), IOMMUBytes.detach(6, 12),
      ] {
        try session.serve([request[0], 0xff, 0xff, 0xff] + request[4...])
      }
      guard target.unit?.domains.contains(6) == false else { throw Failure("a request was not done") }
      return .served
    },
  ]
}
