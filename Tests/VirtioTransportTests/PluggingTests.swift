import DMA
import HostIO
import IOMMUInterface
import MachineKit
import PCI
import Synchronization
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("Virtio functions that come, go and are renumbered", .timeLimit(.minutes(10))) struct PluggingTests {
  @Test(
    "A function that is taken out while its queues run stops and reaches nothing; a successor starts afresh (R066, R067)"
  )
  func unplug() throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    let (place, ring) = try rig.running(transport, .platform, scattered: true)
    #expect(rig.echo(transport, place, ring))
    rig.bus.remove(rig.function)
    #expect(!rig.function.control.isRunning(0))
    #expect(iommu.requesters.isEmpty)
    #expect(transport.status.rawValue == 0xff)
    // Code that still holds the function cannot start it again.
    rig.function.control.kick(0)
    // Its successor in the same slot, behind the same IOMMU.
    _ = try rig.machine.add(EchoDevice(), .platform, at: rig.slot, name: "next")
    #expect(iommu.requesters == [rig.requester])
    rig.machine.enumerate()
    let next = try rig.driver()
    #expect(next.status == [])
    #expect(rig.negotiate(next, .platform))
    let again = place.ring(.platform, .literal)
    rig.start(next, place)
    #expect(rig.echo(next, place, again))
  }

  @Test("A function whose bus is renumbered while its queue runs meets the mappings of its new number (R030)")
  func renumber() throws {
    let iommu = PageIOMMU()
    let machine = try TestMachine(iommu: iommu)
    let bus = machine.bus
    let bridge = bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let function = try machine.add(EchoDevice(), .platform, at: PCISlot(0), behind: bridge)
    machine.enumerate()
    let found = try machine.access(RequesterID(bus: 1, device: 0))
    let transport = try PCIDriverTransport(found)
    let features = Features.platform
    transport.status = [.acknowledge, .driver]
    transport.accept(features)
    transport.status = [.acknowledge, .driver, .featuresOK]
    let new = RequesterID(bus: 7, device: 0)
    // The same addresses, elsewhere in memory, by number.
    let size = 0x4_0000
    let (layout, end) = literalLayout(size: 16, packed: false, at: 0x5000_0000)
    let data = DMAAddress(end)
    var places: [RequesterID: LiteralMemory] = [:]
    for (number, guest) in [(found.requester, GuestAddress(0x10_0000)), (new, GuestAddress(0x80_0000))] {
      iommu.map(number, DMAAddress(0x5000_0000), byteCount: UInt64(size), to: guest)
      let literal = LiteralMemory(machine.memory)
      literal.map(DMAAddress(0x5000_0000), byteCount: size, to: guest)
      places[number] = literal
    }
    func send(_ ring: any LiteralRing, _ notify: () -> Void) -> Bool {
      _ = ring.post([LiteralDescriptor(data, 64, writable: true)])
      ring.publish()
      notify()
      return machine.interrupts.poll { !ring.takeUsed().isEmpty }
    }
    let old = makeLiteralRing(layout, features: features, in: try #require(places[found.requester]))
    transport.enableQueue(0, layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    #expect(send(old) { transport.notify(0, data: 0) })
    // The ring is where the old one was, one buffer on, in memory that only the new number reaches.
    let moved = makeLiteralRing(layout, features: features, startingAt: 1, in: try #require(places[new]))
    bus.writeConfiguration(of: RequesterID(bus: 0, device: 1), at: PCIRegister.primaryBus, width: 4, 0x0007_0700)
    #expect(function.control.isRunning(0))
    #expect(send(moved) { transport.notify(0, data: 0) })
    #expect(old.takeUsed().isEmpty)
    #expect(iommu.requesters.contains(new) && !iommu.requesters.contains(found.requester))
  }

  @Test("Bus mastering, BARs and interrupts that change under a running queue do no harm")
  func turmoil() throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(CounterDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    let ended = try EventFD()
    let stop = Flag()
    let (bus, requester, function) = (rig.bus, rig.requester, rig.function)
    // A second processor, which writes what it likes.
    let thread = try WorkerThread(name: "turmoil") {
      var random = SeededGenerator(5)
      while !stop.value.load(ordering: .relaxed) {
        let command: PCICommand =
          random.chance(1, in: 2) ? [.memorySpace, .ioSpace] : [.memorySpace, .ioSpace, .busMaster]
        bus.writeConfiguration(of: requester, at: PCIRegister.command, width: 2, UInt32(command.rawValue))
        function.writeBAR(
          1, at: 16 * UInt64.random(in: 0..<4, using: &random) + 12, width: 4, random.chance(1, in: 2) ? 1 : 0)
        if random.chance(1, in: 16) { function.writeBAR(4, at: 20, width: 1, 0) }
        _ = function.readBAR(4, at: 0x1000, width: 1)
      }
      ended.signal()
    }
    for round in UInt8(0)..<60 {
      guard rig.negotiate(transport, .platform) else { continue }
      let place = rig.place(scattered: true)
      let ring = place.ring(.platform, .literal)
      transport.enableQueue(0, place.layout)
      transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
      _ = ring.post([LiteralDescriptor(place.data, 64 + UInt32(round), writable: true)])
      ring.publish()
      transport.notify(0, data: 0)
      iommu.unmapAll(requester)
    }
    stop.value.store(true, ordering: .relaxed)
    #expect(try ended.wait(timeout: .seconds(20)))
    thread.join()
    let command = PCICommand([.memorySpace, .ioSpace, .busMaster])
    rig.access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(command.rawValue))
    let last = try rig.driver()
    let (place, ring) = try rig.running(last, .platform, scattered: true)
    #expect(rig.echo(last, place, ring))
  }
}

/// A flag that two threads share.
private final class Flag: Sendable {
  let value = Atomic<Bool>(false)
}
