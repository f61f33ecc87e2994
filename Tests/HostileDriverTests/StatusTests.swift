import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: status and features", .timeLimit(.minutes(10))) struct StatusTests {
  /// A row: features are accepted that are not the driver's to accept.
  private static func accepting(
    _ features: Features, _ sentence: String, _ clause: String, on transports: [Transport]
  ) -> Attack {
    Attack(sentence, clause, on: transports, stage: .found) { session, target in
      guard target.transport.isLegacy else {
        try target.checkRefusal(of: session.features.union(features))
        return .refused
      }
      target.meet()
      target.driver.accept(session.features.union(features))
      guard target.control.negotiatedFeatures.isSubset(of: target.driver.deviceFeatures) else {
        throw Failure("a bit not offered was taken")
      }
      session.enable()
      session.goLive()
      return .untouched
    }
  }

  private static let acceptances: [Attack] =
    [
      accepting(.blockReadOnly, "A feature is accepted that was not offered", "2.2.1-1", on: .all),
      accepting(.blockZoned, "Zones are accepted of a disk that has none", "5.2.5.1-2", on: .all),
      accepting(
        .singleRootIOV, "Virtual functions are accepted of a device without their capability", "6.1-6", on: .modern),
      accepting(
        .administrationQueue, "Administration virtqueues are accepted where there are none", "2.2.1-4", on: .modern),
    ]
    + [3, 24, 30, 31, 42, 50, 63, 127].map { bit in
      accepting(
        Features(bit: bit), "Bit \(bit), reserved or of other devices or transports, is accepted", "2.2.1-4",
        on: bit < 32 ? .all : .modern)
    }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks + acceptances))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R041)
    Attack("ACCESS_PLATFORM is negotiated, and the IOMMU was told of nothing", "6.1-2", on: .modern, platform: true) {
      session, target in
      let outcome = try session.read()
      guard case .stopped = outcome, target.iommu?.faults.isEmpty == false else {
        throw Failure("memory was reached past the IOMMU")
      }
      return outcome
    },
    // (R006)
    Attack("ACCESS_PLATFORM is not offered, and addresses are not physical", "6.1-3", on: .all) { session, _ in
      session.writeHeader(0, sector: 0)
      _ = session.ring.post([
        LiteralDescriptor(session.header, 16), LiteralDescriptor(DMAAddress(0x7f_0000_0000), 512, writable: true),
        LiteralDescriptor(session.status, 1, writable: true),
      ])
      return try session.outcome(session.show())
    },
    .ignored("DRIVER_OK without ACKNOWLEDGE and DRIVER", "2.1.1-1", on: .all, stage: .found) { session, target in
      target.driver.status = []
      target.driver.accept(session.features)
      if !target.transport.isLegacy { target.driver.status = [.featuresOK] }
      session.enable()
      target.driver.status = target.transport.isLegacy ? [.driverOK] : [.featuresOK, .driverOK]
    },
    .ignored("Bits of the status are cleared while the device is live", "2.1.1-2", on: .all) { _, target in
      let all = target.driver.status
      for one in [DeviceStatus.acknowledge, .driver, .driverOK, .featuresOK, .suspend] { target.driver.status = one }
      guard target.driver.status == all else { throw Failure("a bit was cleared: \(target.driver.status)") }
    },
    Attack("After FAILED the driver goes on without a reset", "2.1.1-3", "3.1.1-6", on: .all) { session, target in
      target.driver.status = target.driver.status.union(.failed)
      target.driver.accept(session.features)
      session.enable()
      session.goLive()
      session.beginRead()
      guard target.driver.status.contains(.failed), !target.control.isRunning(0) else {
        throw Failure("FAILED was forgotten")
      }
      return .refused
    },
    Attack("VERSION_1 is offered and not accepted", "6.1-1", on: .modern, stage: .found, without: .version1) {
      session, target in
      try target.checkRefusal(of: session.features)
      return .refused
    },
  ]
}
