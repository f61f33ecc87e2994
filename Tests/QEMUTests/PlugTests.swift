import QTestKit
import Testing

@Suite("QEMU without a guest: a disk is plugged in where one was pulled out", .needsQEMU) struct PlugTests {
  private func expectServed(_ machine: DiskMachine, _ memory: DeviceMemory, _ format: RingFormat, _ sector: Int) throws
  {
    let driver = try DiskDriver(machine.disks[0].function, memory, format)
    let buffer = try memory.allocate(4096)
    try driver.expectRead(sector: sector, into: buffer)
    #expect(
      try driver.run(DiskDriver.Request.write, sector: sector, [Piece(buffer, 4096, writable: false)]).status == 0)
  }

  // QEMU keeps the socket open and begins again at GET_FEATURES, with the same memory at the same addresses. Behind an
  // IOMMU the lab's plug job does it.
  @Test("On one socket a disk lives again and again (R065)", .needsSluice, arguments: RingFormat.allCases)
  func sameSocket(_ format: RingFormat) throws {
    let options = DiskOptions(.sluice) {
      $0.packed = format == .packed
      $0.platform = false
    }
    let machine = try DiskMachine([options], addressBits: nil, monitored: true)
    for life in 0..<5 {
      try expectServed(machine, machine.physical(), format, life * 8)
      try machine.replug(0)
    }
    #expect(machine.disks[0].server?.program.isRunning == true)
  }

  @Test(
    "qemu-storage-daemon, the referee, lives again on one socket, too",
    .enabled(if: DiskBackend.storageDaemonPath != nil))
  func referee() throws {
    let machine = try DiskMachine(
      [DiskOptions(.storageDaemon) { $0.platform = false }], addressBits: nil, monitored: true)
    for life in 0..<3 {
      try expectServed(machine, machine.physical(), .split, life * 8)
      try machine.replug(0)
    }
  }
}
