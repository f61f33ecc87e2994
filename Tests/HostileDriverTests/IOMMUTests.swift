import DMA
import Testing
import Virtio
import VirtioDevices
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: an IOMMU's features, configuration and framing", .timeLimit(.minutes(10))) struct IOMMUTests {
  private typealias Site = IOMMUSite
  private static func preparation(_ stage: Preparation.Stage, without: Features = []) -> Preparation {
    Preparation(kind: .iommu, stage: stage, without: without)
  }

  private func configuration(_ victim: Victim) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: IOMMULayout.configurationSize)
    var span = bytes.mutableSpan
    victim.transport.readConfiguration(at: 0, into: &span)
    return bytes
  }

  @Test("The old feature for bypass is accepted where the new one is offered", arguments: Front.modern)
  func bypassFeature(_ front: Front) throws {
    try attack("2.2.1-1", on: front, Self.preparation(.found)) { life, victim in
      victim.transport.status = []
      victim.transport.status = [.acknowledge, .driver]
      victim.transport.accept(life.features.union(.iommuBypass))
      victim.transport.status = [.acknowledge, .driver, .featuresOK]
      guard !victim.transport.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
      guard victim.look(Site.working.endpoint, Site.bypassed) == nil else { throw Failure("an endpoint was let through") }
      return .refused
    }
  }

  @Test("Read-only fields are written, whole and in parts, and what is behind them ", arguments: Front.modern,
    [Features(), .iommuBypassConfig])
  func readOnly(_ front: Front, _ without: Features) throws {
    try attackIOMMU("5.13.4.1-1", on: front, without: without) { _, victim in
      let before = configuration(victim)
      for width in [1, 2, 4, 8] {
        for value in [0, 0xa5, 0xff] as [UInt8] {
          for at in Array(0..<36) + [37, 40, 44, 255, 4000] where at >= 36 || at + width <= 36 {
            let bytes = [UInt8](repeating: value, count: width)
            victim.transport.writeConfiguration(at: at, from: bytes.span)
          }
        }
      }
      guard configuration(victim) == before else { throw Failure("a field changed") }
      return .untouched
    }
  }

  @Test("bypass is written without the feature", arguments: Front.modern)
  func withoutFeature(_ front: Front) throws {
    try attackIOMMU("5.13.4.1-1", on: front, without: .iommuBypassConfig) { _, victim in
      for value in [1, 0, 1] as [UInt8] {
        victim.transport.writeConfiguration(at: 36, from: [value].span)
        guard configuration(victim)[36] == 0 else { throw Failure("bypass changed") }
      }
      return .untouched
    }
  }

  @Test(
    "bypass is written before features are settled, by a driver that will have it and by one that will not", arguments: Front.modern,
    [Features(), .iommuBypassConfig])
  func early(_ front: Front, _ without: Features) throws {
    try attack("3.1.1-2", on: front, Self.preparation(.found, without: without)) { life, victim in
      victim.transport.writeConfiguration(at: 36, from: [1].span)
      victim.transport.status = []
      victim.transport.writeConfiguration(at: 36, from: [1].span)
      victim.transport.status = [.acknowledge, .driver]
      victim.transport.accept(life.features)
      victim.transport.writeConfiguration(at: 36, from: [1].span)
      guard configuration(victim)[36] == 0, victim.look(Site.working.endpoint, Site.bypassed) == nil else {
        throw Failure("bypass changed")
      }
      try life.begin()
      try life.settle()
      return .untouched
    }
  }

  @Test("bypass is neither 0 nor 1", arguments: Front.modern)
  func bypass(_ front: Front) throws {
    try attackIOMMU("5.13.4.1-2", on: front) { life, victim in
      for start in [1, 0] as [UInt8] {
        victim.transport.writeConfiguration(at: 36, from: [start].span)
        for value in 2...255 as ClosedRange<UInt8> {
          victim.transport.writeConfiguration(at: 36, from: [value].span)
          guard configuration(victim)[36] == start else { throw Failure("bypass took \(value)") }
        }
        for (at, count) in [(36, 4), (35, 2), (32, 8)] {
          let bytes = [UInt8](repeating: 0xfe, count: count)
          victim.transport.writeConfiguration(at: at, from: bytes.span)
          guard configuration(victim)[36] == start else { throw Failure("bypass took \(bytes)") }
        }
      }
      try life.checkWitnesses()
      // And what it may be works, there and back.
      victim.transport.writeConfiguration(at: 36, from: [1].span)
      guard victim.reaches(Site.working.endpoint, Site.bypassed, Site.bypassed) else { throw Failure("bypass did nothing") }
      victim.transport.writeConfiguration(at: 36, from: [0].span)
      return .untouched
    }
  }

  @Test("MAP and UNMAP are sent without the feature (R161)", arguments: Front.modern)
  func withoutMapUnmap(_ front: Front) throws {
    try attackIOMMU("5.13.5.1-1", on: front, without: .iommuMapUnmap) { life, _ in
      try life.refuse(IOMMUBytes.map(Site.attacked.domain, Site.prey.virtual, Site.prey.virtual + 0xfff, Site.prey.physical), .untouched)
      try life.refuse(IOMMUBytes.unmap(Site.attacked.domain, 0, .max), .untouched)
      return .requestRefused
    }
  }

  @Test("A driver maps, never unmaps, and detaches: nothing of it is left", arguments: Front.modern)
  func neverUnmaps(_ front: Front) throws {
    try attackIOMMU("5.13.5.1-1", on: front) { life, victim in
      let (endpoint, domain) = Site.attacked
      try life.serve(IOMMUBytes.detach(domain, endpoint))
      try life.serve(IOMMUBytes.attach(domain, endpoint))
      guard victim.unit?.mappings(of: domain) == 0, victim.look(endpoint, Site.prey.virtual) == nil else {
        throw Failure("mappings outlive their domain")
      }
      return .served
    }
  }

  @Test("A request comes before FEATURES_OK, and before DRIVER_OK", arguments: Front.modern, [Preparation.Stage.found, .enabled])
  func before(_ front: Front, _ stage: Preparation.Stage) throws {
    try attack("3.1.1-7", on: front, Self.preparation(stage)) { life, victim in
      if stage == .found {
        victim.transport.status = []
        victim.transport.status = [.acknowledge, .driver]
        life.enable()
      }
      victim.literal.write(IOMMUBytes.attach(Site.attacked.domain, Site.attacked.endpoint, flags: 1), at: life.header)
      victim.allow(life.status, 4)
      _ = life.ring.post([LiteralDescriptor(life.header, 20), LiteralDescriptor(life.status, 4, writable: true)])
      life.ring.publish()
      for _ in 0..<100 { life.notify() }
      guard !victim.control.isRunning(0), life.ring.takeUsed().isEmpty, victim.unit?.domains == [] else {
        throw Failure("a request was served too early")
      }
      guard stage == .enabled else { return .refused }
      life.goLive()
      guard case .used(let used) = life.answer(), used.first?.length == 4 else { return .noAnswer }
      guard victim.unit?.domains == [Site.attacked.domain] else { throw Failure("a request that waited was not done") }
      return .served
    }
  }

  @Test("Requests of every type are cut off, or have no room for a tail (R161)", arguments: Front.modern, 0..<5)
  func cut(_ front: Front, _ which: Int) throws {
    try attackIOMMU("5.13.6-1", on: front) { life, _ in
      let (endpoint, domain) = Site.attacked
      let whole = [
        IOMMUBytes.attach(6, endpoint), IOMMUBytes.detach(domain, endpoint),
        IOMMUBytes.map(domain, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical),
        IOMMUBytes.unmap(domain, Site.prey.virtual, Site.prey.virtual + 0x3fff), IOMMUBytes.probe(endpoint),
      ][which]
      for count in 0..<whole.count { try life.refuse(Array(whole[..<count]), .untouched) }
      for room in 0..<4 { try life.refuse(whole, .untouched, room: room) }
      return .requestRefused
    }
  }

  @Test("A request has more bytes than its type, and its pieces are two bytes each (§5.13.6)", arguments: Front.modern, [false, true])
  func framed(_ front: Front, _ pieces: Bool) throws {
    try attackIOMMU("5.13.6-1", on: front) { life, victim in
      let request = IOMMUBytes.attach(Site.attacked.domain, 12)
      guard pieces else {
        try life.serve(request + [UInt8](repeating: 0xff, count: 4000))
        try life.serve(IOMMUBytes.detach(Site.attacked.domain, 12))
        return .served
      }
      victim.literal.write(request, at: life.header)
      let chain =
        (0..<10).map { LiteralDescriptor(life.header + 2 * $0, 2) } + (0..<4).map { LiteralDescriptor(life.status + $0, 1, writable: true) }
      guard try life.send(chain) == .ok, victim.unit?.attachments[RequesterID(rawValue: 12)] == Site.attacked.domain else {
        throw Failure("a request in pieces is not done")
      }
      try life.serve(IOMMUBytes.detach(Site.attacked.domain, 12))
      return .served
    }
  }

  @Test("Types that do not exist (R161)", arguments: Front.modern)
  func types(_ front: Front) throws {
    try attackIOMMU("5.13.6-2", on: front) { life, _ in
      for type in [0] + Array(6...255) as [UInt8] {
        let answer = try life.ask([type, 0, 0, 0] + [UInt8](repeating: 1, count: 68))
        guard answer == .untouched else { throw Failure("type \(type) is answered with \(answer)") }
      }
      return .requestRefused
    }
  }

  @Test("The head's reserved bytes are not 0: they are ignored", arguments: Front.modern)
  func head(_ front: Front) throws {
    try attackIOMMU("5.13.6.1-4", on: front) { life, victim in
      for request in [
        IOMMUBytes.attach(6, 12), IOMMUBytes.map(6, Site.trial.virtual, Site.trial.virtual + 0xfff, Site.trial.physical),
        IOMMUBytes.unmap(6, Site.trial.virtual, Site.trial.virtual + 0xfff), IOMMUBytes.detach(6, 12),
      ] {
        try life.serve([request[0], 0xff, 0xff, 0xff] + request[4...])
      }
      guard victim.unit?.domains.contains(6) == false else { throw Failure("a request was not done") }
      return .served
    }
  }

  @Test("A request for memory that is not there, or an answer into it", arguments: Front.modern, [false, true])
  func nowhere(_ front: Front, _ answer: Bool) throws {
    try attackIOMMU("5.13.6-1", on: front) { life, victim in
      victim.literal.write(IOMMUBytes.detach(Site.attacked.domain, Site.attacked.endpoint), at: life.header)
      let void = DMAAddress(0x7f_0000_0000)
      _ = life.ring.post([
        LiteralDescriptor(answer ? life.header : void, 20), LiteralDescriptor(answer ? void : life.status, 4, writable: true),
      ])
      victim.allow(life.status, 4)
      switch life.show() {
      case .stopped: return .stopped
      case .nothing: return .noAnswer
      case .used(let used):
        guard used.first?.length == 0 else { throw Failure("something was made of it") }
        return .requestRefused
      }
    }
  }
}
