import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import NVMe
import PCI
import SocketMessages
import Testing
import VirtioTestKit

@testable import VfioUser

@Suite("NVMe over vfio-user", .timeLimit(.minutes(10))) struct NVMeOverVfioUserTests {
  /// Starts the driver, with an eventfd for each vector, and a mapping for each request.
  ///
  /// - Parameter served: the client's memory if it is reached by messages; otherwise it comes with a descriptor.
  static func start(_ rig: Rig, _ client: Client, served: ServedMemory? = nil) throws -> NVMeDriver {
    let info = try DeviceInfo(decoding: client.command(.getInfo, DeviceInfo().encoded), of: "INFO")
    #expect(info.flags == DeviceInfo.isPCI | DeviceInfo.resets && info.regionCount == 9)
    let interrupts = try InterruptInfo(
      decoding: client.command(.getInterruptInfo, InterruptInfo(index: VfioInterrupt.msix).encoded), of: "IRQ")
    #expect(interrupts.count > 1)
    let events = try (0..<2).map { _ in try EventFD() }
    try client.command(
      .setInterrupts,
      SetInterrupts(
        flags: SetInterrupts.dataEventfd | SetInterrupts.trigger, index: VfioInterrupt.msix, start: 0, count: 2
      ).encoded, descriptors: events.map(\.rawValue))
    let pages = GuestPages(rig.memory, at: GuestAddress(1 << 20), byteCount: 7 << 20)
    let mapper = IOMMUMapper(
      served ?? ClientDomain(client, file: rig.file.descriptor.rawValue) as any IOMMUDomain,
      addresses: IOVAAllocator(aperture: 1 << 32...(1 << 33) - 1),
      pages: pages)
    let wait = BoundedWait(attempts: 20_000) {
      if served != nil { try? client.pump() }
      for event in events where (try? event.wait(timeout: .milliseconds(1))) == true { _ = try? event.drain() }
    }
    let messages = (0..<2).map { InterruptMessage(address: 0xFEE0_0000, data: UInt32($0)) }
    return try NVMeDriver(
      client, mapper: mapper, options: NVMeDriverOptions(queueSize: 16, format: .prp, messages: messages, wait: wait))
  }

  @Test(
    "A driver reads what it wrote, with a mapping for each request, and nothing stays mapped; so it does by messages",
    arguments: [false, true])
  func readsBack(_ byMessages: Bool) throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    let served = byMessages ? ServedMemory(client, rig.memory) : nil
    let driver = try Self.start(rig, client, served: served)
    #expect(driver.blockCount == 8 << 11)
    for round in 0..<40 as Range<UInt64> {
      let count = 4096 * Int(1 + round % 5)
      let pattern = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ Int(round)) }
      let (from, into) = (GuestAddress(0x80_0200), GuestAddress(0x90_0000))
      #expect(rig.memory.copy(pattern.span, to: from) == pattern.count)
      try driver.write(16 * round, from: [GuestSegment(from, count: UInt32(count))].span)
      try driver.flush()
      try driver.read(16 * round, into: [GuestSegment(into, count: UInt32(count))].span)
      var back = [UInt8](repeating: 0, count: count)
      var span = back.mutableSpan
      #expect(rig.memory.copy(from: into, into: &span) == count)
      #expect(back == pattern)
    }
    try driver.stop()
    if let served { #expect(served.refused == 0 && served.reads > 0 && served.writes > 0) }
  }
}
