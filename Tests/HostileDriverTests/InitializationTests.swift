import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: initialization, cleanup and suspension", .timeLimit(.minutes(10))) struct InitializationTests
{
  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  @Test("Features are accepted after FEATURES_OK, and while the device is live (R014)", arguments: [Transport].modern)
  func late(_ transport: Transport) throws {
    try attack("3.1.1-3", on: transport) { session, target in
      target.driver.accept(Features(rawValue: .max))
      target.driver.accept([])
      guard target.control.negotiatedFeatures == session.features else { throw Failure("features changed") }
      return .untouched
    }
  }

  @Test("FEATURES_OK did not stick, and the driver goes on (R008)", arguments: [Transport].modern)
  func refused(_ transport: Transport) throws {
    try attack("3.1.1-4", "3.1.1-5", on: transport, Preparation(stage: .found)) { session, target in
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
    }
  }

  @Test("Buffers are notified before DRIVER_OK (R013)", arguments: [Transport].modern)
  func notified(_ transport: Transport) throws {
    try attack("3.1.1-7", on: transport, Preparation(stage: .enabled)) { session, target in
      session.postRead()
      session.ring.publish()
      for _ in 0..<100 { session.notify() }
      guard !target.control.isRunning(0), session.ring.takeUsed().isEmpty else {
        throw Failure("a request was served before DRIVER_OK")
      }
      session.goLive()
      return try session.outcome(session.answer())
    }
  }

  private func suspended(_ clause: String, _ transport: Transport, _ body: (Session, Target) throws -> Outcome) throws {
    try attack(clause, on: transport, Preparation(features: .suspend)) { session, target in
      target.driver.status = target.driver.status.union(.suspend)
      return try body(session, target)
    }
  }

  private func resume(_ target: Target) {
    target.driver.status = target.driver.status.union(.driverOK)
  }

  @Test("SUSPEND is set, and not read back to see whether the device is suspended", arguments: [Transport].modern)
  func unverified(_ transport: Transport) throws {
    try suspended("3.4.1-1", transport) { _, target in
      target.driver.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      return .untouched
    }
  }

  @Test("Buffers are made available to a suspended device (R063)", arguments: [Transport].modern)
  func available(_ transport: Transport) throws {
    try suspended("3.4.1-2", transport) { session, target in
      session.postRead()
      session.ring.publish()
      guard session.ring.takeUsed().isEmpty else { throw Failure("a suspended device served a request") }
      resume(target)
      return try session.outcome(session.answer())
    }
  }

  @Test("A suspended device is notified (R063)", arguments: [Transport].modern)
  func bells(_ transport: Transport) throws {
    try suspended("3.4.1-3", transport) { session, target in
      for _ in 0..<100 { session.notify() }
      guard !target.control.isRunning(0) else { throw Failure("a suspended device runs") }
      resume(target)
      return .untouched
    }
  }

  @Test("The configuration of a suspended device is written", arguments: [Transport].modern)
  func configured(_ transport: Transport) throws {
    try suspended("3.4.1-4", transport) { _, target in
      let before = target.driver.configuration(1, at: 32)
      target.driver.writeConfiguration(at: 32, from: [before[0] ^ 1].span)
      guard before == target.driver.configuration(1, at: 32) else { throw Failure("the configuration changed") }
      resume(target)
      return .untouched
    }
  }

  @Test("A device that is to go on is used before it says that it does", arguments: [Transport].modern)
  func impatient(_ transport: Transport) throws {
    try suspended("3.4.1-5", transport) { session, target in
      target.driver.status = [.driverOK]
      return try session.read()
    }
  }

  private static let attacks: [Attack] = [
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
