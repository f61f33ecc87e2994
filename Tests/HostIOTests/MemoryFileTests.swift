import Glibc
import HostIO
import Testing

@Suite("Memory files")
struct MemoryFileTests {
  @Test("Size and seals are as asked for, and hold")
  func seals() throws {
    let file = try MemoryFile(name: "memory", size: 8192, seals: [.shrink])
    let (size, seals) = (try file.size(), try file.seals())
    #expect(size == 8192 && seals == .shrink)
    try file.resize(to: 16384)
    do {
      try file.resize(to: 4096)
      Issue.record("a sealed file became smaller")
    } catch { #expect(error.errno == .notPermitted) }
    try file.add([.grow, .seals])
    do {
      try file.add(.write)
      Issue.record("a seal was added after the last")
    } catch { #expect(error.errno == .notPermitted) }
    let (after, all) = (try file.size(), try file.seals())
    #expect(after == 16384 && all == [.shrink, .grow, .seals])
  }

  @Test("A received descriptor that is no memory file has no seals")
  func adopted() throws {
    let pipe = try EventFD()
    let file = MemoryFile(adopting: try .duplicating(pipe.rawValue))
    do {
      _ = try file.seals()
      Issue.record("an eventfd has seals")
    } catch { #expect(error.errno == .invalidArgument) }
  }
}
