import DMA
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

@Suite("A Xen guest's grants")
struct XenGrantTests {
  private func bench(capacity: Int = 64) throws -> (XenGrantTable, EndpointSpace) {
    let memory = try GuestMemory(byteCount: 1 << 20)
    for page in 0..<UInt64(256) { memory.setWord(page << 12, page) }
    let table = XenGrantTable(capacity: capacity)
    return (table, table.plug(RequesterID(bus: 0, device: 1), memory))
  }
  private func address(_ reference: UInt32) -> UInt64 { 1 << 63 | UInt64(reference) << 12 }

  @Test(
    "A reference leads to its page, read-only ones may not be written, and any address that is no reference leads nowhere (R180)"
  )
  func references() throws {
    let (table, endpoint) = try bench()
    var device = DeviceView(endpoint)
    let first = try #require(table.grantAccess(to: 5, count: 2, readOnly: true))
    let second = try #require(table.grantAccess(to: 9, count: 1, readOnly: false))
    #expect(first >= 8)
    #expect(device.read(address(first)) == .success(5) && device.read(address(first + 1)) == .success(6))
    #expect(device.asksToWrite(address(first))?.reason == .permission)
    #expect(device.read(address(second)) == .success(9) && device.asksToWrite(address(second) + 4088) == nil)
    let one = address(second)
    for wrong: UInt64 in [5 << 12, one & ~(1 << 63), one | 1 << 62, one | 1 << 44, address(0), one + 4096, .max & ~7] {
      #expect(faultReason(device.read(wrong)) == .unmapped, "\(wrong)")
    }
    #expect(table.faults == 8 && table.count == 3)
  }

  @Test("An ended grant is reachable no more, and its number is not the next to be given out")
  func ending() throws {
    let (table, endpoint) = try bench()
    var device = DeviceView(endpoint)
    let first = try #require(table.grantAccess(to: 5, count: 3, readOnly: false))
    #expect(device.read(address(first + 1)) == .success(6))
    #expect(table.endAccess(first, count: 3))
    for page in UInt32(0)..<3 { #expect(faultReason(device.read(address(first + page))) == .unmapped) }
    #expect(table.grantAccess(to: 7, count: 1, readOnly: false) != first)
    #expect(
      !table.endAccess(first, count: 3) && !table.endAccess(.max, count: 2) && !table.endAccess(first, count: .max)
        && !table.endAccess(first, count: 0))
  }

  @Test("While the other domain has a page mapped its grant cannot be ended, nor those with it (R180)")
  func inUse() throws {
    let (table, endpoint) = try bench()
    var device = DeviceView(endpoint)
    let first = try #require(table.grantAccess(to: 5, count: 2, readOnly: true))
    #expect(
      table.map(first + 1, readOnly: false) == nil && table.map(first + 2, readOnly: true) == nil
        && table.map(.max, readOnly: true) == nil)
    #expect(table.map(first + 1, readOnly: true) == GuestAddress(6 << 12))
    #expect(table.map(first + 1, readOnly: true) != nil)
    #expect(!table.endAccess(first, count: 2))
    #expect(device.read(address(first)) == .success(5))
    table.unmap(first + 1)
    #expect(!table.endAccess(first, count: 2))
    table.unmap(first + 1)
    table.unmap(first + 1)
    #expect(table.endAccess(first, count: 2))
  }

  @Test("A full table gives nothing, for any request, and numbers come round again")
  func full() throws {
    let (table, _) = try bench(capacity: 16)
    for count in [9, .max, 0] as [UInt64] { #expect(table.grantAccess(to: 0, count: count, readOnly: true) == nil) }
    #expect(
      table.grantAccess(to: 1 << 52, count: 1, readOnly: true) == nil
        && table.grantAccess(to: 1 << 52 - 1, count: 2, readOnly: true) == nil)
    let all = try (0..<8).map { _ in try #require(table.grantAccess(to: 1, count: 1, readOnly: true)) }
    #expect(Set(all) == Set(8..<16) && table.grantAccess(to: 1, count: 1, readOnly: true) == nil)
    #expect(table.endAccess(10, count: 1) && table.endAccess(12, count: 1))
    #expect(table.grantAccess(to: 1, count: 2, readOnly: true) == nil)
    #expect(table.endAccess(11, count: 1))
    #expect(table.grantAccess(to: 1, count: 3, readOnly: true) == 10)
  }
}
