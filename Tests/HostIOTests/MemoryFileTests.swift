import Glibc
import HostIO
import Testing

@Suite("Memory files") struct MemoryFileTests {
  @Test("Size and seals are as asked for, and hold")
  func seals() throws {
    let file = try MemoryFile(name: "memory", size: 8192, seals: [.shrink])
    let (size, seals) = (try file.size(), try file.seals())
    #expect(size == 8192 && seals == .shrink)
    try file.resize(to: 16384)
    expect(EPERM) { try file.resize(to: 4096) }
    try file.add([.grow, .seals])
    // No seal comes after the last.
    expect(EPERM) { try file.add(.write) }
    let (after, all) = (try file.size(), try file.seals())
    #expect(after == 16384 && all == [.shrink, .grow, .seals])
  }

  @Test("A received descriptor that is no memory file has no seals")
  func adopted() throws {
    let pipe = try EventFD()
    let file = MemoryFile(adopting: try .duplicating(pipe.rawValue))
    expect(EINVAL) { _ = try file.seals() }
  }
}
