import IOMMUInterface
import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("Registers of a function", .timeLimit(.minutes(10))) struct FunctionRegisterTests {
  let rig: FunctionRig
  let device = CounterDevice()
  init() throws { rig = try FunctionRig(device) }

  @Test("A driver that lets the pin interrupt it reads why from ISR status, which lets the pin go")
  func pin() throws {
    let transport = try rig.driver(messages: false)
    let (place, ring) = try rig.running(transport, vectors: false)
    #expect(rig.echo(transport, place, ring))
    #expect(rig.interrupts.wait { rig.interrupts.isAsserted(3) })
    #expect(transport.takeISR() == 1)
    #expect(!rig.interrupts.isAsserted(3))
    #expect(transport.takeISR() == 0)
    device.set(1)
    #expect(rig.interrupts.isAsserted(3))
    // Messages instead: the pin is let go although nobody read why.
    #expect(transport.enableMSIX([InterruptMessage(address: 0xfee0_0000, data: 9)]))
    #expect(!rig.interrupts.isAsserted(3))
    #expect(transport.takeISR() == 2)
    #expect(rig.interrupts.data.isEmpty)
  }

  @Test("An event that is mapped to no vector, or to one that does not exist, sends nothing")
  func vectors() throws {
    let transport = try rig.driver()
    #expect(!transport.setVector(4, ofQueue: 0))
    #expect(!transport.setConfigurationVector(0x7ff))
    #expect(transport.setVector(3, ofQueue: 0))
    #expect(transport.setVector(PCITransport.noVector, ofQueue: 0))
    #expect(!transport.setVector(1, ofQueue: 3))
    let (place, ring) = try rig.running(transport, vectors: false)
    // Without a vector there is no interrupt: look until it is there.
    _ = ring.post([LiteralDescriptor(place.data, 16, writable: true)])
    ring.publish()
    transport.notify(0, data: 0)
    #expect(rig.interrupts.poll { !ring.takeUsed().isEmpty })
    #expect(rig.interrupts.data.isEmpty)
    #expect(transport.setConfigurationVector(0))
    transport.status = []
    #expect(rig.access.readBAR(4, at: 16, width: 2) == 0xffff)
  }

  @Test("The generation changes after a read that shows a change, once, and the driver is told")
  func generation() throws {
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .plain))
    rig.start(transport, rig.place(scattered: false))
    func number() -> UInt64 {
      transport.configuration(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    let old = transport.configurationGeneration
    #expect(number() == 0x1111_2222_3333_4444 && transport.configurationGeneration == old)
    for _ in 0..<256 { device.set(42) }
    #expect(rig.interrupts.data.filter { $0 == 0x20 }.count == 256)
    #expect(number() == 42)
    let new = transport.configurationGeneration
    #expect(new != old)
    #expect(number() == 42 && transport.configurationGeneration == new)
    transport.writeConfiguration(at: 8, from: [1, 2, 3, 4].span)
    #expect(device.drivers == 0x0403_0201)
  }

  @Test("Queues show a power of two that fits, take smaller ones, and are 0 where there is none")
  func sizes() throws {
    let transport = try rig.driver()
    #expect(transport.maxQueueSize(0) == 32)
    #expect(transport.maxQueueSize(3) == 0)
    #expect(transport.maxQueueSize(65535) == 0)
    for (written, read) in [(UInt32(16), UInt32(16)), (17, 16), (0, 16), (64, 16), (32, 32)] {
      _ = transport.maxQueueSize(1)
      rig.access.writeBAR(4, at: 24, width: 2, written)
      #expect(rig.access.readBAR(4, at: 24, width: 2) == read, "\(written)")
    }
    // A packed ring's size is free.
    #expect(rig.negotiate(transport, [.version1, .ringPacked]))
    _ = transport.maxQueueSize(1)
    rig.access.writeBAR(4, at: 24, width: 2, 47)
    #expect(rig.access.readBAR(4, at: 24, width: 2) == 47)
  }

  @Test(
    "Notifications arrive in every layout, with data and with the device's own names for queues",
    arguments: [VirtioPCIOptions.NotifyLayout.single, .pagePerQueue],
    [
      Features(), .notificationData, .notificationConfigurationData,
      [.notificationData, .notificationConfigurationData],
    ])
  func notifications(_ layout: VirtioPCIOptions.NotifyLayout, _ extra: Features) throws {
    let rig = try FunctionRig(
      CounterDevice(),
      .with {
        $0.notifyLayout = layout
        $0.offersNotificationData = true
      })
    let transport = try rig.driver()
    let features = Features.plain.union(extra)
    #expect(rig.negotiate(transport, features))
    let place = rig.place(scattered: false)
    let ring = place.ring(features, .literal)
    #expect(transport.setVector(3, ofQueue: 2))
    transport.enableQueue(2, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    // Once it is idle, only a notification that names the right queue makes it look.
    for i in 0..<3 {
      _ = ring.post([LiteralDescriptor(place.data, 16, writable: true)])
      ring.publish()
      transport.notify(2, data: UInt16(i + 1))
      #expect(rig.interrupts.wait { rig.interrupts.data.count > i }, "\(i)")
    }
    let last = try #require(rig.access.writes.last)
    #expect(last.width == (extra.contains(.notificationData) ? 4 : 2))
    #expect(last.offset == 0x3000 + (layout == .single ? 0 : 0x2000))
    #expect(last.value & 0xffff == (extra.contains(.notificationConfigurationData) ? 0xfffd : 2))
    if extra.contains(.notificationData) { #expect(last.value >> 16 == 3) }
  }

  @Test("After a reset nothing is in flight and nothing is remembered (R060)")
  func reset() throws {
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .plain))
    let place = rig.place(scattered: false)
    rig.start(transport, place)
    transport.status = []
    #expect(!rig.function.control.isRunning(0))
    for at in stride(from: UInt64(0), to: 60, by: 2)
    where at != 18 && at != 24 && at != 16 && at != 26 && !(4..<8).contains(at) {
      #expect(rig.access.readBAR(4, at: at, width: 2) & (at == 20 ? 0xff : 0xffff) == 0, "\(at)")
    }
    #expect(rig.access.readBAR(4, at: 24, width: 2) == 32)
    // What a late notification rings for is not there.
    rig.access.writeBAR(4, at: 0x3000, width: 2, 0)
    #expect(transport.status == [])
  }

  @Test("After any writes of a guest, anywhere and in any width, the function goes on and serves the next driver")
  func garbage() throws {
    let rig = try FunctionRig(CounterDevice(), .with { $0.disableLegacy = .off })
    let transport = try rig.driver()
    var random = SeededGenerator(11)
    let values: [UInt64] = [0, 1, 2, 0xff, 0xffff, 0x8000_0000, .max]
    for _ in 0..<4000 {
      let width = [1, 2, 4, 8].randomElement(using: &random) ?? 1
      let value = values.randomElement(using: &random) ?? 0
      let bar = [0, 1, 4].randomElement(using: &random) ?? 0
      let offset = UInt64.random(in: 0..<(bar == 0 ? 32 : bar == 1 ? 4096 : 0x3100), using: &random)
      rig.function.writeBAR(bar, at: offset, width: width, value)
      _ = rig.function.readBAR(bar, at: offset, width: width)
      // Not the command register: firmware's work would have to be done again.
      let register = Int.random(in: 0x40..<0x110, using: &random)
      rig.access.writeConfiguration(at: register, width: min(width, 4), UInt32(truncatingIfNeeded: value))
    }
    let again = try rig.driver()
    let (place, ring) = try rig.running(again, .plain, scattered: false)
    #expect(rig.echo(again, place, ring))
    withExtendedLifetime(transport) {}
  }
}
