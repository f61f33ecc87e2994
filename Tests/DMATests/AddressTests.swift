import Testing

@testable import DMA

@Suite("Addresses and permissions")
struct AddressTests {
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
    let p = DMAPermissions.read
    #expect(run.part(from: 0, count: 1 << 16, seenFrom: DMAAddress(0), permissions: p) != nil)
    #expect(run.part(from: 0, count: 1 << 16 + 1, seenFrom: DMAAddress(0), permissions: p) == nil)
    #expect(run.part(from: 1, count: 1 << 16, seenFrom: DMAAddress(0), permissions: p) == nil)
    #expect(run.part(from: 0, count: 0, seenFrom: DMAAddress(0), permissions: p) == nil)
    #expect(run.part(from: .max, count: 1, seenFrom: DMAAddress(0), permissions: p) == nil)
    #expect(run.part(from: 0, count: 2, seenFrom: DMAAddress(.max), permissions: p) == nil)
    let top = try #require(run.part(from: 0, count: 1, seenFrom: DMAAddress(.max), permissions: p))
    #expect(top.contains(DMAAddress(.max)) && top.byteCount == 1)
  }
}
