import Foundation
import Testing

@testable import DMA

@Suite("What a translation table costs", .serialized) struct TableMemoryTests {
  /// Bytes of this process that are in memory.
  private var resident: Int {
    let words = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ") ?? []
    return words.count > 1 ? (Int(words[1]) ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE))) : 0
  }

  @Test("A table that is emptied gives its memory back to the system, not to the heap")
  func givenBack() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    let whole = try #require(memory.run(at: GuestAddress(0)))
    let fence = TranslationFence()
    let table = TranslationTable()
    // Other tests run in this process: once in three tries their memory does not hide ours.
    for attempt in 1...3 {
      for n in UInt64(0)..<32000 {
        let page = try #require(whole.part(from: 0, count: 4096, seenFrom: DMAAddress(n << 21), permissions: .read))
        #expect(table.insert(page))
      }
      // Something of ours behind it, as there always is in a program: a heap cannot shrink below.
      let above = [UInt8](repeating: 1, count: 4096)
      let full = resident
      table.removeAll(drained: fence)
      let empty = resident
      #expect(table.mappings == 0)
      withExtendedLifetime(above) {}
      if full - empty > 100 << 20 { return }
      #expect(attempt < 3, "\(full >> 20) MiB with 125 MiB of nodes, \(empty >> 20) MiB without")
    }
  }
}
