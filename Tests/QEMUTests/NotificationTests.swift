import QTestKit
import Testing

@Suite("QEMU without a guest: used buffer notifications", .needsQEMU) struct NotificationTests {
  @Test(
    "The driver hears of used buffers when it wants to, and only then", arguments: DiskBackend.translating,
    RingFormat.allCases)
  func interrupts(_ backend: DiskBackend, _ format: RingFormat) throws {
    for eventIndex in [false, true] {
      let fixture = try Fixture(
        backend, format, size: 16, wanted: eventIndex ? DiskDriver.usual : DiskDriver.usual & ~Feature.eventIndex)
      let function = fixture.disk.function
      let memory = fixture.memory
      let driverArea = fixture.driver.ring.areas.driver
      let buffer = try memory.allocate(512)
      func requests(_ count: Int) throws {
        for sector in 0..<count {
          #expect(
            try fixture.driver.run(DiskDriver.Request.read, sector: sector, [Piece(buffer, 512, writable: true)]).status
              == 0)
        }
      }
      func expectInterrupt(_ what: String) throws {
        try fixture.qemu.wait(for: "interrupt: \(what)", seconds: 5) { () throws(QTestError) in
          try function.takeInterrupts() & 1 != 0
        }
      }
      // Every driver starts with a notification wanted for the first entry.
      try requests(1)
      try expectInterrupt("the first")
      switch (format, eventIndex) {
      case (.split, false): try memory.store(driverArea, UInt16(1))  // NO_INTERRUPT
      case (.split, true): try memory.store(driverArea + 4 + 2 * 16, UInt16(0x4000))  // used_event far away
      case (.packed, _): try memory.store(driverArea + 2, UInt16(1))  // disabled
      }
      try requests(21)
      #expect(try function.takeInterrupts() & 1 == 0, "not wanted")
      switch (format, eventIndex) {
      case (.split, false): try memory.store(driverArea, UInt16(0))
      case (.split, true): try memory.store(driverArea + 4 + 2 * 16, UInt16(23))  // the 24th
      case (.packed, false): try memory.store(driverArea + 2, UInt16(0))
      case (.packed, true):
        // Requests are 3 descriptors in a ring of 16; the 24th begins at 69, so at 5 in the fifth round, whose wrap bit
        // is set.
        try memory.store(driverArea, UInt16(5 | 1 << 15))
        try memory.store(driverArea + 2, UInt16(2))
      }
      if eventIndex {
        try requests(1)
        #expect(try function.takeInterrupts() & 1 == 0, "not yet")
      }
      try requests(1)
      try expectInterrupt("\(format), event index \(eventIndex)")
    }
  }
}
