import QTestKit
import Testing

@Suite("QEMU without a guest: what is not translated, and what is not made", .needsQEMU) struct WindowTests {
  /// Reads the device's configuration space through the window in PCI configuration space (§4.1.4.9).
  private func readThroughWindow(_ pci: PCI, _ at: PCIAddress, count: Int) throws -> [UInt8] {
    var window: Int?
    var device: (bar: UInt8, offset: UInt32)?
    for capability in try pci.capabilities(at, id: 0x09) {
      switch try pci.read(at, capability + 3, as: UInt8.self) {
      case 4: device = (try pci.read(at, capability + 4), try pci.read(at, capability + 8))
      case 5: window = capability
      default: break
      }
    }
    let place = try #require(window), target = try #require(device)
    try pci.write(at, place + 4, target.bar)
    var bytes: [UInt8] = []
    for offset in stride(from: 0, to: count, by: 4) {
      try pci.write(at, place + 8, target.offset + UInt32(offset))
      try pci.write(at, place + 12, UInt32(4))
      let word = try pci.read(at, place + 16, as: UInt32.self)
      bytes += (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
    }
    return bytes
  }

  @Test(
    "A driver reaches configuration and doorbells where nothing at all is mapped, through registers and through the window (R038, R071)",
    arguments: DiskBackend.translating, [true, false])
  func windows(_ backend: DiskBackend, _ platform: Bool) throws {
    let machine = try DiskMachine([DiskOptions(backend) { $0.platform = platform }])
    let vtd = try #require(machine.vtd)
    let disk = machine.disks[0]
    // A domain with an empty table: any access of the device's own would fault, and would be the wrong one.
    _ = try machine.domain(for: disk)
    try vtd.invalidate(.global)
    _ = try vtd.takeFaults()
    for _ in 0..<3 {
      #expect(try disk.function.configuration(0, as: UInt64.self) == 2048, "sectors")
      let bytes = try readThroughWindow(machine.pci, disk.function.address, count: 32)
      let registers = try (0..<32).map { try disk.function.configuration($0, as: UInt8.self) }
      #expect(bytes == registers)
      try machine.qemu.store(disk.function.notificationAddress(0), UInt16(0))
      #expect(try disk.function.status() & VirtioFunction.Status.needsReset == 0)
    }
    #expect(try vtd.takeFaults().isEmpty)
    if let server = disk.server { #expect(server.program.isRunning) }
  }

  /// Back-ends that do not offer bit 33.
  static var untranslating: [DiskBackend] {
    (DiskBackend.sluicePath == nil ? [] : [.sluice]) + (DiskBackend.storageDaemonPath == nil ? [] : [.storageDaemon])
  }

  @Test(
    "A disk with bit 33 on a back-end that does not offer it is not made behind an IOMMU, and the back-end serves the next machine (R018, R130)",
    arguments: untranslating)
  func refusedAtCreation(_ backend: DiskBackend) throws {
    let scratch = try Scratch()
    let image = try DiskImage(in: scratch)
    let server = try DiskServer(
      backend, image: image, in: scratch, arguments: backend == .sluice ? ["--access-platform", "off"] : [])
    var options = DiskOptions(backend)
    options.running = (server, image)
    let error = #expect(throws: QTestError.self) { _ = try DiskMachine([options]) }
    #expect(
      "\(error.map { "\($0)" } ?? "")".contains("iommu_platform"),
      "the message names the option: \(error.map { "\($0)" } ?? "none")")
    #expect(server.program.isRunning)
    options.platform = false
    let machine = try DiskMachine([options])
    let memory = machine.physical()
    let driver = try DiskDriver(machine.disks[0].function, memory)
    let buffer = try memory.allocate(4096)
    try driver.expectRead(sector: 8, into: buffer)
  }
}
