import MachineKit
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioServing
import VirtioTestKit

/// Offsets are written out here as the table of §4.2.2 has them.
@Suite("Registers of a memory-mapped device", .timeLimit(.minutes(10))) struct BoardRegisterTests {
  let rig: BoardRig
  let device = CounterDevice()
  init() throws { rig = try BoardRig(device) }

  @Test("The first four registers say what it is, and nothing can be written there")
  func identity() throws {
    let rig = try BoardRig(CounterDevice(), .with { $0.vendorID = 0x1234_5678 })
    for at in stride(from: UInt64(0), through: 0xc, by: 4) { rig.window[at] = .max }
    #expect(rig.window[0x000] == 0x7472_6976)
    #expect(rig.window[0x004] == 2)
    #expect(rig.window[0x008] == 4)
    #expect(rig.window[0x00c] == 0x1234_5678)
    #expect(rig.mmio.byteCount == 0x10c)
    #expect(try BoardRig(CounterDevice(), .old).window[0x004] == 1)
  }

  @Test(
    "A queue is programmed by its registers, reads back nothing of them but QueueReady, and is frozen while that is 1 (R040)"
  )
  func queue() throws {
    let rig = try BoardRig(CounterDevice(), .platform)
    let transport = try rig.driver()
    rig.window[0x030] = 1
    #expect(rig.window[0x034] == 32)
    rig.window[0x030] = 3
    #expect(rig.window[0x034] == 0)
    rig.window[0x030] = 0x1_0001
    #expect(rig.window[0x034] == 0, "the index has 32 bits")
    // Not before FEATURES_OK.
    rig.window[0x030] = 1
    rig.window[0x044] = 1
    #expect(rig.window[0x044] == 0)
    #expect(rig.negotiate(transport, .platform))
    rig.window[0x030] = 1
    rig.window[0x038] = 16
    rig.window[0x080] = 0x1000_0000
    rig.window[0x084] = 0x7f
    rig.window[0x090] = 0x2000_0000
    rig.window[0x094] = 0x7e
    rig.window[0x0a0] = 0x3000_0000
    rig.window[0x0a4] = 0x7d
    rig.window[0x044] = 1
    #expect(rig.window[0x044] == 1)
    for at in [UInt64(0x038), 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] {
      #expect(rig.window[at] == 0)
      rig.window[at] = 8
    }
    let queue = try #require(rig.mmio.control.queue(1))
    #expect(
      queue.size == 16 && queue.descriptorArea == 0x7f_1000_0000 && queue.driverArea == 0x7e_2000_0000
        && queue.deviceArea == 0x7d_3000_0000)
    rig.window[0x044] = 0
    #expect(rig.window[0x044] == 0)
    for size in [UInt32(17), 0, 64, 0x1_0010, 8] { rig.window[0x038] = size }
    #expect(rig.mmio.control.queue(1)?.size == 8 && rig.window[0x034] == 32)
    // The size of a packed ring is free.
    #expect(rig.negotiate(transport, Features.platform.union(.ringPacked)))
    rig.window[0x030] = 1
    #expect(rig.window[0x034] == 48)
    rig.window[0x038] = 47
    #expect(rig.mmio.control.queue(1)?.size == 47)
  }

  @Test("A queue that is switched off lets go, and starts anew when it is switched on again")
  func ready() throws {
    let rig = try BoardRig(CounterDevice(), .platform, iommu: PageIOMMU())
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    let place = rig.place(scattered: true)
    rig.start(transport, place)
    #expect(rig.echo(transport, place, place.ring(.platform, .literal)) == true)
    #expect(transport.disableQueue(0))
    #expect(!rig.mmio.control.isRunning(0))
    rig.iommu?.unmapAll(BoardRig.requester)
    transport.notify(0, data: 0)
    #expect(rig.iommu?.faults.isEmpty == true)
    let again = rig.place(8, scattered: true)
    let ring = again.ring(.platform, .literal)
    transport.enableQueue(0, again.layout)
    #expect(rig.echo(transport, again, ring))
  }

  @Test("InterruptStatus says why the line is asserted, until all of it is acknowledged")
  func interrupts() throws {
    let transport = try rig.driver()
    device.set(1)
    #expect(!rig.interrupts.isLineAsserted, "before DRIVER_OK nobody is told")
    let (place, ring) = try rig.running(transport, .plain, scattered: false)
    ring.wantCalls()
    _ = ring.post([LiteralDescriptor(place.data, 16, writable: true)])
    ring.publish()
    transport.notify(0, data: 0)
    #expect(rig.interrupts.poll { rig.interrupts.isLineAsserted })
    #expect(rig.window[0x060] == 1)
    device.set(2)
    #expect(rig.window[0x060] == 3 && rig.interrupts.edges == 1)
    rig.window[0x064] = 0xffff_fffc
    rig.window[0x064] = 1
    #expect(rig.window[0x060] == 2 && rig.interrupts.isLineAsserted)
    rig.window[0x060] = 0
    #expect(transport.takeInterrupts() == 2)
    #expect(rig.window[0x060] == 0 && !rig.interrupts.isLineAsserted)
    #expect(transport.takeInterrupts() == 0)
    device.set(3)
    #expect(rig.interrupts.isLineAsserted)
    transport.status = []
    #expect(!rig.interrupts.isLineAsserted && rig.window[0x060] == 0)
  }

  @Test("Notifications with data name their queue in the lower half")
  func notificationData() throws {
    let transport = try rig.driver()
    let features = Features.plain.union(.notificationData)
    #expect(rig.negotiate(transport, features))
    let place = rig.place(scattered: false)
    let ring = place.ring(features, .literal)
    transport.enableQueue(2, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    for round in UInt8(0)..<5 { #expect(rig.echo(transport, place, ring, queue: 2, seed: round)) }
    transport.notify(2, data: 0xffff)
    #expect(rig.echo(transport, place, ring, queue: 2))
  }

  @Test("The device's configuration is read in bytes, halves and words, and its generation tells of changes")
  func configuration() throws {
    #expect(rig.window.read(at: 0x100, width: 4) == 0x3333_4444)
    #expect(rig.window.read(at: 0x101, width: 1) == 0x44)
    #expect(rig.window.read(at: 0x102, width: 2) == 0x3333)
    #expect(rig.mmio.read(at: 0x100, width: 8) == 0x1111_2222_3333_4444)
    #expect(rig.window.read(at: 0x10c, width: 4) == 0 && rig.mmio.read(at: .max, width: 4) == 0)
    let old = rig.window[0x0fc]
    device.set(42)
    #expect(rig.window[0x100] == 42)
    #expect(rig.window[0x0fc] != old)
    let transport = try rig.driver()
    transport.writeConfiguration(at: 8, from: [1, 2, 3, 4].span)
    #expect(device.drivers == 0x0403_0201)
    #expect(transport.readConfiguration(UInt64.self, at: 0) == 42)
    #expect(transport.configurationGeneration == rig.window[0x0fc])
  }

  @Test("Shared memory regions are none: length and address of each are -1")
  func sharedMemory() throws {
    let rig = try BoardRig()
    for id in [UInt32(0), 1, .max] {
      rig.window[0x0ac] = id
      for at in [UInt64(0x0b0), 0x0b4, 0x0b8, 0x0bc] { #expect(rig.window[at] == .max) }
    }
  }

  @Test("Registers are 32 bits wide and aligned: other accesses read 0 and change nothing")
  func widths() throws {
    for (at, width) in [(UInt64(0), 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x72, 2), (0xfd, 4)] {
      #expect(rig.mmio.read(at: at, width: width) == 0, "\(at) \(width)")
    }
    rig.mmio.write(at: 0x70, width: 1, 1)
    rig.mmio.write(at: 0x70, width: 2, 1)
    rig.mmio.write(at: 0x70, width: 8, 1)
    rig.mmio.write(at: 0x71, width: 4, 1)
    #expect(rig.window[0x070] == 0)
    rig.window[0x070] = 1
    #expect(rig.window[0x070] == 1)
  }

  @Test("After a reset nothing is in flight and nothing is remembered (R060)")
  func reset() throws {
    let rig = try BoardRig(CounterDevice(), .platform)
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    let place = rig.place(scattered: false)
    rig.start(transport, place)
    #expect(rig.mmio.control.isRunning(0))
    rig.window[0x014] = 1
    rig.window[0x030] = 2
    transport.status = []
    #expect(rig.window[0x070] == 0 && !rig.mmio.control.isRunning(0))
    #expect(rig.window[0x044] == 0 && rig.window[0x034] == 32)
    #expect(rig.mmio.control.queue(0)?.descriptorArea == 0 && rig.mmio.control.driverFeatures(word: 1) == 0)
    transport.notify(0, data: 0)
    #expect(!rig.mmio.control.isRunning(0))
  }

  @Test(
    "After any writes of a guest, anywhere and in any width, the device goes on and serves the next driver",
    arguments: [false, true])
  func garbage(_ legacy: Bool) throws {
    let rig = try BoardRig(CounterDevice(), legacy ? .old : VirtioMMIOOptions())
    var random = SeededGenerator(12)
    let values: [UInt64] = [0, 1, 2, 3, 4, 7, 11, 15, 0xff, 0xffff, 4096, 0x8000_0000, .max]
    for _ in 0..<20_000 {
      let width = [1, 2, 4, 4, 4, 4, 8].randomElement(using: &random) ?? 1
      let offset =
        random.chance(1, in: 10)
        ? UInt64.random(in: 0..<0x200, using: &random) : UInt64.random(in: 0..<0x48, using: &random) * 4
      rig.mmio.write(at: offset, width: width, values.randomElement(using: &random) ?? 0)
      _ = rig.mmio.read(at: offset, width: width)
    }
    rig.mmio.reset()
    let transport = try rig.driver()
    if legacy {
      let (place, ring) = rig.startLegacy(transport)
      #expect(rig.echo(transport, place, ring))
    } else {
      let (place, ring) = try rig.running(transport, .plain, scattered: false)
      #expect(rig.echo(transport, place, ring))
    }
  }
}
