import DMA
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: status and features", .timeLimit(.minutes(10))) struct StatusTests {
  @Test("DRIVER_OK without ACKNOWLEDGE and DRIVER", arguments: Front.all)
  func skipped(_ front: Front) throws {
    try attack("2.1.1-1", on: front, Preparation(stage: .found)) { life, victim in
      victim.transport.status = []
      victim.transport.accept(life.features)
      if !front.isLegacy { victim.transport.status = [.featuresOK] }
      life.enable()
      victim.transport.status = front.isLegacy ? [.driverOK] : [.featuresOK, .driverOK]
      return .untouched
    }
  }

  @Test("Bits of the status are cleared while the device is live", arguments: Front.all)
  func cleared(_ front: Front) throws {
    try attack("2.1.1-2", on: front) { _, victim in
      let all = victim.transport.status
      for one in [DeviceStatus.acknowledge, .driver, .driverOK, .featuresOK, .suspend] { victim.transport.status = one }
      guard victim.transport.status == all else { throw Failure("a bit was cleared: \(victim.transport.status)") }
      return .untouched
    }
  }

  @Test("After FAILED the driver goes on without a reset", arguments: Front.all)
  func failed(_ front: Front) throws {
    try attack("2.1.1-3", "3.1.1-6", on: front) { life, victim in
      victim.transport.status = victim.transport.status.union(.failed)
      victim.transport.accept(life.features)
      life.enable()
      life.goLive()
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      life.notify()
      guard victim.transport.status.contains(.failed), !victim.control.isRunning(0) else { throw Failure("FAILED was forgotten") }
      return .refused
    }
  }

  private func accept(_ features: Features, _ front: Front, _ clauses: [String]) throws {
    for clause in clauses {
      try attack(clause, on: front, Preparation(stage: .found)) { life, victim in
        victim.transport.status = []
        victim.transport.status = [.acknowledge, .driver]
        victim.transport.accept(life.features.union(features))
        if front.isLegacy {
          guard victim.control.negotiatedFeatures.isSubset(of: victim.transport.deviceFeatures) else { throw Failure("a bit not offered was taken") }
          life.enable()
          life.goLive()
          return .untouched
        }
        victim.transport.status = [.acknowledge, .driver, .featuresOK]
        guard !victim.transport.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
        return .refused
      }
    }
  }

  @Test("A feature is accepted that was not offered", arguments: Front.all)
  func notOffered(_ front: Front) throws { try accept(.blockReadOnly, front, ["2.2.1-1"]) }

  @Test("Reserved bits, bits of other devices and of other transports are accepted", arguments: Front.all)
  func reserved(_ front: Front) throws {
    for bit in [3, 24, 30, 31, 42, 50, 63, 127] where bit < 32 || !front.isLegacy { try accept(Features(bit: bit), front, ["2.2.1-4"]) }
  }

  @Test("Virtual functions are accepted of a device without their capability", arguments: Front.modern)
  func virtualFunctions(_ front: Front) throws { try accept(.singleRootIOV, front, ["6.1-6"]) }

  @Test("Administration virtqueues are accepted where there are none", arguments: Front.modern)
  func administration(_ front: Front) throws { try accept(.administrationQueue, front, ["2.2.1-4"]) }

  @Test("Zones are accepted of a disk that has none", arguments: Front.all)
  func zoned(_ front: Front) throws { try accept(.blockZoned, front, ["5.2.5.1-2"]) }

  @Test("VERSION_1 is offered and not accepted", arguments: Front.modern)
  func version(_ front: Front) throws {
    try attack("6.1-1", on: front, Preparation(stage: .found, without: .version1)) { life, victim in
      victim.transport.status = []
      victim.transport.status = [.acknowledge, .driver]
      victim.transport.accept(life.features)
      victim.transport.status = [.acknowledge, .driver, .featuresOK]
      guard !victim.transport.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
      return .refused
    }
  }

  @Test("ACCESS_PLATFORM is negotiated, and the IOMMU was told of nothing (R041)", arguments: Front.modern)
  func unmapped(_ front: Front) throws {
    try attack("6.1-2", on: front, Preparation(platform: true)) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      let outcome = try life.outcome(life.show())
      guard case .stopped = outcome, victim.iommu?.faults.isEmpty == false else { throw Failure("memory was reached past the IOMMU") }
      return outcome
    }
  }

  @Test("ACCESS_PLATFORM is not offered, and addresses are not physical (R006)", arguments: Front.all)
  func notPhysical(_ front: Front) throws {
    try attack("6.1-3", on: front) { life, _ in
      life.writeHeader(0, sector: 0)
      _ = life.ring.post([
        LiteralDescriptor(life.header, 16), LiteralDescriptor(DMAAddress(0x7f_0000_0000), 512, writable: true),
        LiteralDescriptor(life.status, 1, writable: true),
      ])
      return try life.outcome(life.show())
    }
  }
}
