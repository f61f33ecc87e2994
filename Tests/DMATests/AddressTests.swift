import Testing

@testable import DMA

@Suite("Addresses and permissions") struct AddressTests {
  @Test("A permission allows what it names and nothing else", arguments: 0...3)
  func permissions(_ raw: Int) {
    let permissions = DMAPermissions(rawValue: UInt8(raw))
    #expect(permissions.allows(.read) == (raw & 1 != 0))
    #expect(permissions.allows(.write) == (raw & 2 != 0))
  }

  @Test("A part of a run stays inside it, at the top of the address space too (R059)")
  func parts() throws {
    let memory = try GuestMemory(byteCount: 1 << 16)
    let run = try #require(memory.run(at: GuestAddress(0)))
    func part(_ first: UInt64, _ count: UInt64, seenFrom address: UInt64 = 0) -> HostRun? {
      run.part(from: first, count: count, seenFrom: DMAAddress(address), permissions: .read)
    }
    #expect(part(0, 1 << 16) != nil && part(0, 1 << 16 + 1) == nil && part(1, 1 << 16) == nil)
    #expect(part(0, 0) == nil && part(.max, 1) == nil && part(0, 2, seenFrom: .max) == nil)
    let top = try #require(part(0, 1, seenFrom: .max))
    #expect(top.contains(DMAAddress(.max)) && top.byteCount == 1)
  }
}
