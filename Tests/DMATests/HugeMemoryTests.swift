import Foundation
import HostIO
import Testing
import VirtioTestKit

@testable import DMA

/// This host's huge pages, of which a few are made for these tests if there are none and that may be done.
private enum HugePages {
  static func figure(_ name: String) -> Int? {
    guard let text = try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8),
      let line = text.split(separator: "\n").first(where: { $0.hasPrefix(name + ":") })
    else { return nil }
    return line.split(whereSeparator: { $0 == " " || $0 == ":" }).dropFirst().first.flatMap { Int($0) }
  }

  static let byteCount = (figure("Hugepagesize") ?? 0) << 10
  static let needed = 8
  static let areHere: Bool = {
    let total = "/proc/sys/vm/nr_hugepages"
    if let free = figure("HugePages_Free"), free < needed, let all = figure("HugePages_Total") {
      try? Data("\(all + needed)".utf8).write(to: URL(fileURLWithPath: total))
    }
    return byteCount > 0 && (figure("HugePages_Free") ?? 0) >= needed
  }()
}

@Suite(
  "Guest memory in huge pages",
  .enabled(if: HugePages.areHere, "NOT TESTED: this host has no 8 free huge pages: echo 8 > /proc/sys/vm/nr_hugepages"),
  .serialized)
struct HugeMemoryTests {
  private func mapped() throws -> Int {
    let text = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8)
    return text.split(separator: "\n").filter { $0.contains("memfd:sluice-huge") }.count
  }

  private func byte(_ mapping: HostMapping, _ offset: Int) -> UInt8 { mapping.bytes(1, at: offset)[0] }

  @Test("A region that neither begins nor ends with a huge page is mapped from the page below, and is gone afterwards")
  func parts() throws {
    let page = HugePages.byteCount
    let file = try MemoryFile(name: "sluice-huge", size: UInt64(4 * page), isHuge: true)
    let whole = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 4 * page)
    let before = try mapped()
    for (offset, count) in [(page + page / 2, page), (0, 2 * page + page / 2), (3 * page - 4096, 4096), (page, page)] {
      do {
        let part = try HostMapping(descriptor: file.descriptor.rawValue, offset: UInt64(offset), byteCount: count)
        #expect(part.copy([7, 8, 9].span, to: count - 3) == 3)
        #expect(byte(whole, offset + count - 3) == 7 && byte(whole, offset + count - 1) == 9)
        #expect(part.copy([1].span, to: 0) == 1)
        #expect(byte(whole, offset) == 1)
        #expect(part.copy([1].span, to: count) == 0)
      }
      #expect(try mapped() == before, "\(count) bytes at \(offset) stay mapped")
    }
  }

  @Test("A file that is cut short costs its pages, and not the process")
  func cut() throws {
    let page = HugePages.byteCount
    let file = try MemoryFile(name: "sluice-huge", size: UInt64(3 * page), isHuge: true)
    let mapping = try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: 3 * page)
    #expect(mapping.copy([5].span, to: 0) == 1 && mapping.copy([6].span, to: 2 * page + 100) == 1)
    try file.resize(to: UInt64(page))
    #expect(byte(mapping, 2 * page + 100) == 0)
    #expect(byte(mapping, page + page / 2) == 0)
    #expect(byte(mapping, 0) == 5)
    #expect(mapping.lostPages == 2)
  }
}
