import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: initialization, cleanup and suspension", .timeLimit(.minutes(10))) struct InitializationTests
{
  /// A row whose driver has suspended the device.
  private static func suspended(
    _ sentence: String, _ clause: String, on transports: [Transport], _ violation: @escaping Attack.Violation
  ) -> Attack {
    Attack(sentence, clause, on: transports, features: .suspend) { session, target in
      target.driver.status = target.driver.status.union(.suspend)
      return try violation(session, target)
    }
  }

  private static func resume(_ target: Target) {
    target.driver.status = target.driver.status.union(.driverOK)
  }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R014)
    .ignored("Features are accepted after FEATURES_OK, and while the device is live", "3.1.1-3", on: .modern) {
      session, target in
      target.driver.accept(Features(rawValue: .max))
      target.driver.accept([])
      guard target.control.negotiatedFeatures == session.features else { throw Failure("features changed") }
    },
    // (R008)
    Attack("FEATURES_OK did not stick, and the driver goes on", "3.1.1-4", "3.1.1-5", on: .modern, stage: .found) {
      session, target in
      target.meet()
      target.driver.accept(session.features.union(.blockReadOnly))
      target.driver.status = [.acknowledge, .driver, .featuresOK]
      session.enable()
      session.goLive()
      session.beginRead()
      guard !target.driver.status.contains(.driverOK), !target.control.isRunning(0) else {
        throw Failure("the device is live")
      }
      return .refused
    },
    // (R013)
    Attack("Buffers are notified before DRIVER_OK", "3.1.1-7", on: .modern, stage: .enabled) { session, target in
      session.postRead()
      session.ring.publish()
      for _ in 0..<100 { session.notify() }
      guard !target.control.isRunning(0), session.ring.takeUsed().isEmpty else {
        throw Failure("a request was served before DRIVER_OK")
      }
      session.goLive()
      return try session.outcome(session.answer())
    },
    suspended("SUSPEND is set, and not read back to see whether the device is suspended", "3.4.1-1", on: .modern) {
      _, target in
      target.driver.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      return .untouched
    },
    // (R063)
    suspended("Buffers are made available to a suspended device", "3.4.1-2", on: .modern) { session, target in
      session.postRead()
      session.ring.publish()
      guard session.ring.takeUsed().isEmpty else { throw Failure("a suspended device served a request") }
      resume(target)
      return try session.outcome(session.answer())
    },
    // (R063)
    suspended("A suspended device is notified", "3.4.1-3", on: .modern) { session, target in
      for _ in 0..<100 { session.notify() }
      guard !target.control.isRunning(0) else { throw Failure("a suspended device runs") }
      resume(target)
      return .untouched
    },
    suspended("The configuration of a suspended device is written", "3.4.1-4", on: .modern) { _, target in
      let before = target.driver.configuration(1, at: 32)
      target.driver.writeConfiguration(at: 32, from: [before[0] ^ 1].span)
      guard before == target.driver.configuration(1, at: 32) else { throw Failure("the configuration changed") }
      resume(target)
      return .untouched
    },
    suspended("A device that is to go on is used before it says that it does", "3.4.1-5", on: .modern) {
      session, target in
      target.driver.status = [.driverOK]
      return try session.read()
    },
    .ignored("A device that is live is initialized again without a reset", "3.1.1-1", on: .all) { session, target in
      target.driver.status = [.acknowledge]
      target.driver.status = [.acknowledge, .driver]
      target.driver.accept(session.features)
      if !target.transport.isLegacy { target.driver.status = [.acknowledge, .driver, .featuresOK] }
      session.goLive()
    },
    .ignored("The configuration is written before features are settled", "3.1.1-2", on: .all, stage: .found) {
      session, target in
      target.meet()
      for at in stride(from: 0, to: 96, by: 4) {
        target.driver.writeConfiguration(at: at, from: [0xff, 0xff, 0xff, 0xff].span)
      }
      target.driver.writeConfiguration(at: 32, from: [1].span)
      try session.begin()
    },
    .ignored("A legacy driver sets FEATURES_OK, which it does not know", "3.1.2-1", on: .legacy) { _, target in
      target.driver.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      guard !target.driver.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
    },
    Attack("What the device has is changed and taken away, without a reset", "3.3.1-1", "3.3.1-2", on: .all) {
      session, target in
      session.postRead()
      session.ring.publish()
      // The second descriptor loses its memory, and so may the device see it; or not, if it was quicker.
      target.literal.write(le32: 0, at: session.layout.descriptorArea + 16 + 8)
      session.notify()
      return try session.outcome(session.answer())
    },
  ]
}
