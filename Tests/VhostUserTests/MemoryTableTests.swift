import DMA
import HostIO
import SocketMessages
import Testing
import VhostUser

@testable import VhostUserBackend

@Suite("The memory table")
struct MemoryTableTests {
  private func region(_ guest: UInt64, _ frontend: UInt64, _ size: UInt64) -> RegionDescription {
    RegionDescription(guestAddress: guest, size: size, frontendAddress: frontend, offset: 0)
  }

  @Test("Regions that overlap in the guest or in the front-end are refused, and nothing changes")
  func overlaps() throws {
    let table = MemoryTable()
    let mapping = try HostMapping(anonymous: 65536)
    try table.add(region(0x10000, 0x7000_0000, 0x8000), mapping)
    for (guest, frontend) in [(0x17fff, 0x1000), (0x40000, 0x7000_7fff), (0x40000, 0x6fff_f001)] as [(UInt64, UInt64)] {
      #expect(throws: ProtocolError.self) { try table.add(region(guest, frontend, 0x1000), mapping) }
    }
    #expect(table.memory.regions.count == 1 && table.guestAddress(of: FrontendAddress(0x1000)) == nil)
    let file = try MemoryFile(name: "table", size: 0x10000)
    for (guest, frontend) in [(0x1000, 0x7fff), (0x9000, 0x1000)] as [(UInt64, UInt64)] {
      var files = FileDescriptorList()
      for _ in 0..<2 { files.append(try FileDescriptor.duplicating(file.descriptor.rawValue)) }
      #expect(throws: ProtocolError.self, "a table whose regions overlap in one of the two") {
        try table.replace(
          with: [region(0x1000, 0x1000, 0x8000), region(guest, frontend, 0x1000)], &files, guestAddresses: false)
      }
    }
    #expect(table.memory.regions.count == 1)
    // Right beside it is fine, and so is the end of the front-end's addresses.
    try table.add(region(0x18000, 0x7000_8000, 0x1000), mapping)
    try table.add(region(0x20000, .max - 0xfff, 0x1000), mapping)
    #expect(table.guestAddress(of: FrontendAddress(.max)) == GuestAddress(0x20fff))
    #expect(throws: ProtocolError.self) { try table.remove(region(0x10000, 0x7000_8000, 0x8000)) }
    #expect(table.memory.regions.count == 3)
    try table.remove(region(0x10000, 0x7000_0000, 0x8000))
    #expect(table.memory.regions.count == 2 && table.guestAddress(of: FrontendAddress(0x7000_0000)) == nil)
  }

  @Test("A front-end address leads to its region's memory, and ends where the region does")
  func leads() throws {
    let table = MemoryTable()
    try table.add(region(0x1000, 0x1000, 0x1000), try HostMapping(anonymous: 0x1000))
    try table.add(region(0x2000, 0x9000, 0x1000), try HostMapping(anonymous: 0x1000))
    #expect(table.guestAddress(of: FrontendAddress(0x9008)) == GuestAddress(0x2008))
    #expect(table.guestAddress(of: FrontendAddress(0x2000)) == nil)
    func run(_ frontend: UInt64, _ first: UInt64, _ last: UInt64) -> HostRun? {
      table.run(
        at: FrontendAddress(frontend), seenFrom: DMAAddress(first), through: DMAAddress(last), permissions: .read)
    }
    let inside = try #require(run(0x9100, 0x5_0000, 0x5_00ff))
    #expect(inside.firstAddress == DMAAddress(0x5_0000) && inside.byteCount == 0x100 && inside.permissions == .read)
    #expect(run(0x9100, 0x5_0000, .max)?.byteCount == 0xf00)
    #expect(run(0x9fff, .max, .max)?.byteCount == 1)
    #expect(run(0xa000, 0, 10) == nil && run(0x9000, 10, 9) == nil)
  }
}
