import DMA
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: initialization, cleanup and suspension", .timeLimit(.minutes(10))) struct InitializationTests {
  @Test("A device that is live is initialized again without a reset", arguments: Front.all)
  func again(_ front: Front) throws {
    try attack("3.1.1-1", on: front) { life, victim in
      victim.transport.status = [.acknowledge]
      victim.transport.status = [.acknowledge, .driver]
      victim.transport.accept(life.features)
      if !front.isLegacy { victim.transport.status = [.acknowledge, .driver, .featuresOK] }
      life.goLive()
      return .untouched
    }
  }

  @Test("The configuration is written before features are settled", arguments: Front.all)
  func early(_ front: Front) throws {
    try attack("3.1.1-2", on: front, Preparation(stage: .found)) { life, victim in
      victim.transport.status = []
      victim.transport.status = [.acknowledge, .driver]
      for at in stride(from: 0, to: 96, by: 4) { victim.transport.writeConfiguration(at: at, from: [0xff, 0xff, 0xff, 0xff].span) }
      victim.transport.writeConfiguration(at: 32, from: [1].span)
      try life.begin()
      return .untouched
    }
  }

  @Test("Features are accepted after FEATURES_OK, and while the device is live (R014)", arguments: Front.modern)
  func late(_ front: Front) throws {
    try attack("3.1.1-3", on: front) { life, victim in
      victim.transport.accept(Features(rawValue: .max))
      victim.transport.accept([])
      guard victim.control.negotiatedFeatures == life.features else { throw Failure("features changed") }
      return .untouched
    }
  }

  @Test("FEATURES_OK did not stick, and the driver goes on (R008)", arguments: Front.modern)
  func refused(_ front: Front) throws {
    try attack("3.1.1-4", "3.1.1-5", on: front, Preparation(stage: .found)) { life, victim in
      victim.transport.status = []
      victim.transport.status = [.acknowledge, .driver]
      victim.transport.accept(life.features.union(.blockReadOnly))
      victim.transport.status = [.acknowledge, .driver, .featuresOK]
      life.enable()
      life.goLive()
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      life.notify()
      guard !victim.transport.status.contains(.driverOK), !victim.control.isRunning(0) else { throw Failure("the device is live") }
      return .refused
    }
  }

  @Test("Buffers are notified before DRIVER_OK (R013)", arguments: Front.modern)
  func notified(_ front: Front) throws {
    try attack("3.1.1-7", on: front, Preparation(stage: .enabled)) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      for _ in 0..<100 { life.notify() }
      guard !victim.control.isRunning(0), life.ring.takeUsed().isEmpty else { throw Failure("a request was served before DRIVER_OK") }
      life.goLive()
      return try life.outcome(life.answer())
    }
  }

  @Test("A legacy driver sets FEATURES_OK, which it does not know", arguments: Front.legacy)
  func legacy(_ front: Front) throws {
    try attack("3.1.2-1", on: front) { _, victim in
      victim.transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      guard !victim.transport.status.contains(.featuresOK) else { throw Failure("FEATURES_OK stuck") }
      return .untouched
    }
  }

  @Test("What the device has is changed and taken away, without a reset", arguments: Front.all)
  func changed(_ front: Front) throws {
    try attack("3.3.1-1", "3.3.1-2", on: front) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      // The second descriptor loses its memory, and so may the device see it; or not, if it was quicker.
      victim.literal.write(le32: 0, at: life.layout.descriptorArea + 16 + 8)
      life.notify()
      return try life.outcome(life.answer())
    }
  }

  private func suspended(_ clause: String, _ front: Front, _ body: (Life, Victim) throws -> Outcome) throws {
    try attack(clause, on: front, Preparation(features: .suspend)) { life, victim in
      victim.transport.status = victim.transport.status.union(.suspend)
      return try body(life, victim)
    }
  }

  private func resume(_ victim: Victim) {
    victim.transport.status = victim.transport.status.union(.driverOK)
  }

  @Test("SUSPEND is set, and nobody looks whether the device is suspended", arguments: Front.modern)
  func unverified(_ front: Front) throws {
    try suspended("3.4.1-1", front) { _, victim in
      victim.transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      return .untouched
    }
  }

  @Test("Buffers are made available to a suspended device (R063)", arguments: Front.modern)
  func available(_ front: Front) throws {
    try suspended("3.4.1-2", front) { life, victim in
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      life.ring.publish()
      guard life.ring.takeUsed().isEmpty else { throw Failure("a suspended device served a request") }
      resume(victim)
      return try life.outcome(life.answer())
    }
  }

  @Test("A suspended device is notified (R063)", arguments: Front.modern)
  func bells(_ front: Front) throws {
    try suspended("3.4.1-3", front) { life, victim in
      for _ in 0..<100 { life.notify() }
      guard !victim.control.isRunning(0) else { throw Failure("a suspended device runs") }
      resume(victim)
      return .untouched
    }
  }

  @Test("The configuration of a suspended device is written", arguments: Front.modern)
  func configured(_ front: Front) throws {
    try suspended("3.4.1-4", front) { _, victim in
      var before: [UInt8] = [0xee]
      var span = before.mutableSpan
      victim.transport.readConfiguration(at: 32, into: &span)
      victim.transport.writeConfiguration(at: 32, from: [before[0] ^ 1].span)
      var after: [UInt8] = [0xee]
      var bytes = after.mutableSpan
      victim.transport.readConfiguration(at: 32, into: &bytes)
      guard before == after else { throw Failure("the configuration changed") }
      resume(victim)
      return .untouched
    }
  }

  @Test("A device that is to go on is used before it says that it does", arguments: Front.modern)
  func impatient(_ front: Front) throws {
    try suspended("3.4.1-5", front) { life, victim in
      victim.transport.status = [.driverOK]
      life.post(0, data: [LiteralDescriptor(life.data, 512, writable: true)])
      return try life.outcome(life.show())
    }
  }
}
