import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioIOMMU
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: status and features", .timeLimit(.minutes(10))) struct StatusTests {
  @Test("DRIVER_OK without ACKNOWLEDGE and DRIVER", arguments: Transport.all)
  func skipped(_ transport: Transport) throws {
    try attack("2.1.1-1", on: transport, Preparation(stage: .found)) { session, target in
      target.driver.status = []
      target.driver.accept(session.features)
      if !transport.isLegacy { target.driver.status = [.featuresOK] }
      session.enable()
      target.driver.status = transport.isLegacy ? [.driverOK] : [.featuresOK, .driverOK]
      return .untouched
    }
  }

  @Test("Bits of the status are cleared while the device is live", arguments: Transport.all)
  func cleared(_ transport: Transport) throws {
    try attack("2.1.1-2", on: transport) { _, target in
      let all = target.driver.status
      for one in [DeviceStatus.acknowledge, .driver, .driverOK, .featuresOK, .suspend] { target.driver.status = one }
      guard target.driver.status == all else { throw Failure("a bit was cleared: \(target.driver.status)") }
      return .untouched
    }
  }

  @Test("After FAILED the driver goes on without a reset", arguments: Transport.all)
  func failed(_ transport: Transport) throws {
    try attack("2.1.1-3", "3.1.1-6", on: transport) { session, target in
      target.driver.status = target.driver.status.union(.failed)
      target.driver.accept(session.features)
      session.enable()
      session.goLive()
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      session.ring.publish()
      session.notify()
      guard target.driver.status.contains(.failed), !target.control.isRunning(0) else {
        throw Failure("FAILED was forgotten")
      }
      return .refused
    }
  }

  private func accept(_ features: Features, _ transport: Transport, _ clauses: [String]) throws {
    for clause in clauses {
      try attack(clause, on: transport, Preparation(stage: .found)) { session, target in
        target.driver.status = []
        target.driver.status = [.acknowledge, .driver]
        target.driver.accept(session.features.union(features))
        if transport.isLegacy {
          guard target.control.negotiatedFeatures.isSubset(of: target.driver.deviceFeatures) else {
            throw Failure("a bit not offered was taken")
          }
          session.enable()
          session.goLive()
          return .untouched
        }
        target.driver.status = [.acknowledge, .driver, .featuresOK]
        guard !target.driver.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
        return .refused
      }
    }
  }

  @Test("A feature is accepted that was not offered", arguments: Transport.all)
  func notOffered(_ transport: Transport) throws { try accept(.blockReadOnly, transport, ["2.2.1-1"]) }

  @Test("Reserved bits, bits of other devices and of other transports are accepted", arguments: Transport.all)
  func reserved(_ transport: Transport) throws {
    for bit in [3, 24, 30, 31, 42, 50, 63, 127] where bit < 32 || !transport.isLegacy {
      try accept(Features(bit: bit), transport, ["2.2.1-4"])
    }
  }

  @Test("Virtual functions are accepted of a device without their capability", arguments: Transport.modern)
  func virtualFunctions(_ transport: Transport) throws { try accept(.singleRootIOV, transport, ["6.1-6"]) }

  @Test("Administration virtqueues are accepted where there are none", arguments: Transport.modern)
  func administration(_ transport: Transport) throws { try accept(.administrationQueue, transport, ["2.2.1-4"]) }

  @Test("Zones are accepted of a disk that has none", arguments: Transport.all)
  func zoned(_ transport: Transport) throws { try accept(.blockZoned, transport, ["5.2.5.1-2"]) }

  @Test("VERSION_1 is offered and not accepted", arguments: Transport.modern)
  func version(_ transport: Transport) throws {
    try attack("6.1-1", on: transport, Preparation(stage: .found, without: .version1)) { session, target in
      target.driver.status = []
      target.driver.status = [.acknowledge, .driver]
      target.driver.accept(session.features)
      target.driver.status = [.acknowledge, .driver, .featuresOK]
      guard !target.driver.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
      return .refused
    }
  }

  @Test("ACCESS_PLATFORM is negotiated, and the IOMMU was told of nothing (R041)", arguments: Transport.modern)
  func unmapped(_ transport: Transport) throws {
    try attack("6.1-2", on: transport, Preparation(platform: true)) { session, target in
      session.post(0, data: [LiteralDescriptor(session.data, 512, writable: true)])
      let outcome = try session.outcome(session.show())
      guard case .stopped = outcome, target.iommu?.faults.isEmpty == false else {
        throw Failure("memory was reached past the IOMMU")
      }
      return outcome
    }
  }

  @Test("ACCESS_PLATFORM is not offered, and addresses are not physical (R006)", arguments: Transport.all)
  func notPhysical(_ transport: Transport) throws {
    try attack("6.1-3", on: transport) { session, _ in
      session.writeHeader(0, sector: 0)
      _ = session.ring.post([
        LiteralDescriptor(session.header, 16), LiteralDescriptor(DMAAddress(0x7f_0000_0000), 512, writable: true),
        LiteralDescriptor(session.status, 1, writable: true),
      ])
      return try session.outcome(session.show())
    }
  }
}
