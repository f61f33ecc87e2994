import QTestKit
import Testing

@Suite(
  "QEMU without a guest: a disk is plugged in where one was pulled out",
  .enabled(if: QEMU.path != nil, Comment(rawValue: QEMU.absence)))
struct PlugTests {
  private func expectServed(_ machine: DiskMachine, _ memory: DeviceMemory, _ format: RingFormat, _ sector: Int) throws
  {
    let driver = try DiskDriver(machine.disks[0].function, memory, format)
    let buffer = try memory.allocate(4096)
    #expect(
      try driver.run(DiskDriver.Request.read, sector: sector, [Piece(buffer, 4096, writable: true)])
        == .init(status: 0, written: 4097))
    try expectSame(memory.read(buffer, count: 4096), DiskImage.pattern(sector, count: 4096))
    #expect(
      try driver.run(DiskDriver.Request.write, sector: sector, [Piece(buffer, 4096, writable: false)]).status == 0)
  }

  // QEMU keeps the socket open and begins again at GET_FEATURES, with the same memory at the same addresses. Behind an
  // IOMMU the lab's plug job does it.
  @Test(
    "On one socket a disk lives again and again (R065)",
    .enabled(if: DiskBackend.sluicePath != nil, Comment(rawValue: DiskBackend.sluiceAbsence)),
    arguments: RingFormat.allCases)
  func sameSocket(_ format: RingFormat) throws {
    var options = DiskOptions(.sluice)
    options.packed = format == .packed
    options.platform = false
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
    var options = DiskOptions(.storageDaemon)
    options.platform = false
    let machine = try DiskMachine([options], addressBits: nil, monitored: true)
    for life in 0..<3 {
      try expectServed(machine, machine.physical(), .split, life * 8)
      try machine.replug(0)
    }
  }
}
