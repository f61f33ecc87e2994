import HostIO
import MachineKit
import NVMe
import Storage
import Testing
import VirtioTestKit

@Suite("Namespaces, and what tools ask", .timeLimit(.minutes(10))) struct NamespaceTests {
  private let data = LiteralDriver.data
  private func bytes(_ driver: LiteralDriver, _ count: Int = 4096) -> [UInt8] { driver.rig.load(count, at: data) }

  /// An image that lives as long as it is held.
  private final class Image {
    let file: MemoryFile
    init() throws { file = try MemoryFile(name: "second", size: 1 << 20) }
  }

  /// A controller with a second namespace of 1 MiB, in blocks of 4096.
  private func two(_ change: (inout NVMeOptions) -> Void = { _ in }) throws -> (LiteralDriver, Image) {
    let other = try Image()
    let rig = try Rig {
      var disk = DiskOptions(inMemory: other.file)
      disk.logicalBlockSize = 4096
      disk.engine = $0.disk.engine
      $0.disks.append(disk)
      change(&$0)
    }
    return (LiteralDriver.ready(rig), other)
  }

  @Test("Each namespace has its own size, blocks, identifiers and bytes; there is no third")
  func separate() throws {
    let (driver, other) = try two()
    #expect(driver.admin(6, pointer1: data, (10, 1))?.status == 0 && bytes(driver)[516] == 2)
    #expect(driver.admin(6, pointer1: data, (10, 2))?.status == 0)
    #expect(Array(bytes(driver, 12)) == [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
    #expect(driver.admin(6, namespace: 1, pointer1: data, (10, 7))?.status == 0)
    #expect(Array(bytes(driver, 8)) == [2, 0, 0, 0, 0, 0, 0, 0])
    #expect(driver.admin(6, namespace: 1, pointer1: data, (10, 0))?.status == 0)
    let first = bytes(driver)
    #expect(driver.admin(6, namespace: 2, pointer1: data, (10, 0))?.status == 0)
    let second = bytes(driver)
    #expect(second[130] == 12 && Array(second[0..<8]) == [0, 1, 0, 0, 0, 0, 0, 0])
    #expect(Array(first[104..<120]) != Array(second[104..<120]) && Array(first[120..<128]) != Array(second[120..<128]))
    // Locally administered: nobody assigned them.
    #expect(second[120] & 3 == 2 && second[112] & 3 == 2)
    driver.rig.store(pattern(4096), at: data)
    #expect(driver.io(1, namespace: 2, pointer1: data, (10, 255))?.status == 0)
    #expect(driver.io(1, namespace: 2, pointer1: data, (10, 256))?.status == 0x080)
    #expect(driver.io(1, namespace: 3, pointer1: data)?.status == 0x00b)
    #expect(driver.io(0, namespace: .max)?.status == 0 && driver.io(0, namespace: 2)?.status == 0)
    #expect(driver.transfer(2, block: 2040, blocks: 8, data + 0x1000) == 0)
    #expect(driver.rig.load(4096, at: data + 0x1000) == [UInt8](repeating: 0, count: 4096))
    #expect(driver.io(2, namespace: 2, pointer1: data + 0x1000, (10, 255))?.status == 0)
    #expect(driver.rig.load(4096, at: data + 0x1000) == pattern(4096))
    _ = other
  }

  @Test("One may be read-only beside one that is not")
  func readOnly() throws {
    let (driver, other) = try two { $0.disks[1].readOnly = true }
    #expect(driver.io(1, namespace: 2, pointer1: data)?.status == 0x020)
    #expect(driver.io(1, namespace: 1, pointer1: data)?.status == 0 && driver.io(0, namespace: .max)?.status == 0)
    #expect(driver.admin(6, namespace: 2, pointer1: data, (10, 8))?.status == 0 && bytes(driver)[8] == 1)
    #expect(driver.admin(0x09, (10, 6), (11, 0))?.status == 0)
    _ = other
  }

  @Test(
    "A resized image is an event, for a driver that enabled it, and a list of namespaces, which reading empties; the size follows"
  )
  func resize() throws {
    let (driver, other) = try two { $0.disks[1].sizePollInterval = nil }
    let rig = driver.rig
    #expect(driver.admin(6, pointer1: data, (10, 1))?.status == 0 && bytes(driver)[93] == 1)
    #expect(driver.admin(0x09, (10, 0x0b), (11, 0x100))?.status == 0)
    let request = driver.post(0, 0x0c, [])
    driver.ring(0)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0 && !driver.hasAnswer(0))
    try other.file.resize(to: 3 << 20)
    rig.controller.refreshSizes()
    let event = driver.take(0)
    #expect(event?.identifier == request && event?.result == 0x0004_0002)
    #expect(driver.admin(6, namespace: 2, pointer1: data, (10, 0))?.status == 0)
    #expect(Array(bytes(driver, 8)) == [0, 3, 0, 0, 0, 0, 0, 0])
    // RAE keeps it.
    for keeps in [UInt32(1), 0] {
      #expect(
        driver.admin(2, namespace: .max, pointer1: data, (10, 4 | 1023 << 16 | keeps << 15))?.status == 0)
      #expect(Array(bytes(driver, 8)) == [2, 0, 0, 0, 0, 0, 0, 0])
    }
    #expect(driver.admin(2, namespace: .max, pointer1: data, (10, 4 | 1023 << 16))?.status == 0)
    #expect(bytes(driver) == [UInt8](repeating: 0, count: 4096))
    #expect(driver.io(2, namespace: 2, pointer1: data, (10, 767))?.status == 0)
  }

  @Test("Compare finds the first byte that differs, in any part of any length, and reads nothing into memory")
  func compare() throws {
    let driver = LiteralDriver.ready(try Rig())
    let all = pattern(256 * 512)
    driver.rig.store(all, at: data)
    for i in 0..<31 { driver.rig.store64(data + 0x1000 * UInt64(i + 1), at: 0x9_0000 + 8 * UInt64(i)) }
    func transfer(_ opcode: UInt32) -> UInt16? { driver.transfer(opcode, block: 64, blocks: 256, data, 0x9_0000) }
    #expect(transfer(1) == 0 && transfer(5) == 0)
    for at in [0, 1000, 65_536, 256 * 512 - 1] {
      driver.rig.store([all[at] ^ 1], at: data + UInt64(at))
      #expect(transfer(5) == 0x285)
      driver.rig.store([all[at]], at: data + UInt64(at))
    }
    #expect(transfer(5) == 0 && driver.rig.load(all.count, at: data) == all)
    #expect(driver.transfer(5, block: 16383, blocks: 2, data) == 0x080)
    #expect(driver.admin(6, pointer1: 0x8_0000, (10, 1))?.status == 0 && driver.rig.load(1, at: 0x8_0208)[0] & 1 == 1)
  }

  @Test(
    "What is not served is refused as an invalid opcode, and OACS does not offer it",
    arguments: [0x80, 0x84, 0x10, 0x11, 0x0d, 0x15, 0x14, 0x81, 0x82, 0x1c, 0x1a, 0x1e, 0xc0] as [UInt32])
  func refused(_ opcode: UInt32) throws {
    let driver = LiteralDriver(try Rig())
    #expect(driver.enable() && driver.admin(opcode, namespace: 1)?.status == 0x001)
    #expect(driver.admin(6, pointer1: data, (10, 1))?.status == 0)
    let c = bytes(driver)
    // Doorbell Buffer Config alone.
    #expect(c[256] == 0 && c[257] == 1 && c[328] == 0)
  }

  @Test("Log pages and lists that tools ask for are there: pages, features, effects, controllers, command sets")
  func lists() throws {
    let driver = LiteralDriver.ready(try Rig { $0.disk.serial = "" })
    func log(_ page: UInt32) -> [UInt8] {
      #expect(driver.admin(2, pointer1: data, (10, page | 1023 << 16))?.status == 0)
      return bytes(driver)
    }
    func words(_ bytes: [UInt8]) -> Set<Int> { Set((0..<bytes.count / 4).filter { bytes[4 * $0] & 1 == 1 }) }
    #expect(words(log(0)) == [0, 1, 2, 3, 4, 5, 0x12])
    #expect(words(log(0x12)) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11])
    let effects = log(5)
    #expect(words(effects).isSuperset(of: [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 256, 257, 258, 261, 264]))
    #expect(effects[4 * 257] == 3 && effects[4 * 258] == 1 && effects[4 * 0x80] == 0)
    func identity(_ structure: UInt32, namespace: UInt32 = 0, _ csi: UInt32 = 0) -> [UInt8]? {
      driver.admin(6, namespace: namespace, pointer1: data, (10, structure), (11, csi << 24))?.status == 0
        ? bytes(driver) : nil
    }
    #expect(identity(0x13)?.prefix(4) == [1, 0, 0, 0] && identity(0x13 | 1 << 16)?.prefix(4) == [0, 0, 0, 0])
    #expect(identity(6) != nil && identity(6, 2) == nil && identity(5, namespace: 1) != nil && identity(5) == nil)
    #expect(identity(0x1c)?.prefix(8) == [1, 0, 0, 0, 0, 0, 0, 0])
    // A serial number of its own.
    let serial = identity(1).map { Array($0[4..<24]) } ?? []
    #expect(serial.prefix(2) == [0x53, 0x4c] && !serial.prefix(18).contains(0x20))
  }

  @Test("Temperatures over and under which it is critical are two, and the log warns where one is passed")
  func temperature() throws {
    let driver = LiteralDriver(try Rig())
    #expect(driver.enable())
    #expect(driver.admin(0x0a, (10, 4))?.result == 0x157 && driver.admin(0x0a, (10, 4), (11, 1 << 20))?.result == 0)
    #expect(driver.admin(0x0a, (10, 4), (11, 1 << 16))?.status == 0x002)
    for (threshold, warning) in [(UInt32(300), UInt8(2)), (1 << 20 | 310, 2), (310, 2), (1 << 20 | 290, 0)] {
      #expect(driver.admin(0x09, (10, 4), (11, threshold))?.status == 0)
      #expect(driver.admin(2, pointer1: data, (10, 2 | 127 << 16))?.status == 0)
      #expect(bytes(driver, 1) == [warning])
    }
  }
}
