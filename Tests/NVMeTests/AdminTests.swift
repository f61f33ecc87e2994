import NVMe
import Storage
import Testing
import VirtioTestKit

@Suite("Admin commands, as the figures draw them", .timeLimit(.minutes(10))) struct AdminTests {
  private func enabled(_ change: (inout NVMeOptions) -> Void = { _ in }) throws -> LiteralDriver {
    let driver = LiteralDriver(try Rig(change))
    #expect(driver.enable())
    return driver
  }
  private func bytes(_ driver: LiteralDriver, _ count: Int = 4096) -> [UInt8] {
    driver.rig.load(count, at: LiteralDriver.data)
  }

  @Test("Identify tells of the controller: who it is, its limits, its queues' entries, SGLs, cache and commands")
  func identifyController() throws {
    let driver = try enabled { $0.maxTransfer = 128 << 10 }
    let answer = driver.admin(0x06, pointer1: LiteralDriver.data, (10, 1))
    #expect(answer == LiteralDriver.Answer(result: 0, status: 0, queue: 0, head: 1, identifier: 0x101, retry: true))
    let c = bytes(driver)
    #expect(c[0] == 0x34 && c[1] == 0x12 && Array(c[4..<24]) == Array("S-1                 ".utf8))
    #expect(Array(c[80..<84]) == [0, 4, 1, 0] && c[77] == 5 && c[111] == 1 && c[259] == 3)
    #expect(c[512] == 0x66 && c[513] == 0x44 && c[516] == 1 && c[520] & 8 != 0 && c[525] & 1 == 1 && c[536] == 1)
    #expect(String(decoding: c[768..<772], as: UTF8.self) == "nqn.")
  }

  @Test("Identify tells of the namespace, of the list of them, and of its identifiers")
  func identifyNamespace() throws {
    let driver = try enabled()
    #expect(driver.admin(0x06, namespace: 1, pointer1: LiteralDriver.data, (10, 0))?.status == 0)
    let n = bytes(driver)
    #expect(
      Array(n[0..<8]) == [0, 0x40, 0, 0, 0, 0, 0, 0] && Array(n[8..<16]) == Array(n[0..<8]) && n[25] == 0 && n[130] == 9
        && n[99] == 0)
    #expect(driver.admin(0x06, namespace: 0, pointer1: LiteralDriver.data, (10, 2))?.status == 0)
    #expect(Array(bytes(driver, 8)) == [1, 0, 0, 0, 0, 0, 0, 0])
    #expect(driver.admin(0x06, namespace: 1, pointer1: LiteralDriver.data, (10, 2))?.status == 0)
    #expect(bytes(driver) == [UInt8](repeating: 0, count: 4096))
    #expect(driver.admin(0x06, namespace: 1, pointer1: LiteralDriver.data, (10, 3))?.status == 0)
    // EUI-64, NGUID, a UUID of version 8, the NVM command set, and no more.
    let d = bytes(driver)
    #expect(Array(d[0..<4]) == [1, 8, 0, 0] && Array(d[4..<12]) == Array(n[120..<128]))
    #expect(Array(d[12..<16]) == [2, 16, 0, 0] && Array(d[16..<32]) == Array(n[104..<120]))
    #expect(Array(d[32..<36]) == [3, 16, 0, 0] && d[42] >> 4 == 8 && d[44] >> 6 == 2)
    #expect(Array(d[52..<57]) == [4, 1, 0, 0, 0] && d[57...].allSatisfy { $0 == 0 })
    #expect(driver.admin(0x06, namespace: 2, pointer1: LiteralDriver.data, (10, 0))?.status == 0x00b)
    #expect(driver.admin(0x06, namespace: 1, pointer1: LiteralDriver.data, (10, 0x77))?.status == 0x002)
  }

  @Test("An identity that begins inside a page goes on in PRP 2, and touches nothing else")
  func split() throws {
    let driver = try enabled()
    driver.rig.store([UInt8](repeating: 0xee, count: 0x4000), at: LiteralDriver.data)
    #expect(
      driver.admin(0x06, pointer1: LiteralDriver.data + 0x600, pointer2: LiteralDriver.data + 0x2000, (10, 1))?.status
        == 0)
    let all = bytes(driver, 0x4000)
    #expect(all[0x600] == 0x34 && all[0x2000 + 0x600 - 1] == 0)
    #expect(
      all[..<0x600].allSatisfy { $0 == 0xee } && all[0x1000..<0x2000].allSatisfy { $0 == 0xee }
        && all[0x2600...].allSatisfy { $0 == 0xee })
  }

  @Test("Unknown opcodes, fused commands, SGLs of admin commands and unknown features are refused by name")
  func refusals() throws {
    let driver = try enabled()
    #expect(driver.admin(0x7f)?.status == 0x001)
    #expect(driver.admin(0x11)?.status == 0x001)
    #expect(driver.admin(0x06, pointer1: LiteralDriver.data, (0, 0x106 | 0x0777 << 16), (10, 1))?.status == 0x002)
    #expect(driver.admin(0x06, pointer1: LiteralDriver.data, psdt: 1, (10, 1))?.status == 0x002)
    #expect(driver.admin(0x0a, (10, 0x99))?.status == 0x002)
    #expect(driver.admin(0x09, (10, 0x06 | 1 << 31), (11, 1))?.status == 0x10d)
    #expect(driver.admin(0x06, pointer1: LiteralDriver.data + 2, (10, 1))?.status == 0x013)
  }

  @Test("Features: queues are granted once, the write cache is switched, what is set is read")
  func features() throws {
    let driver = try enabled { $0.ioQueues = 4 }
    #expect(driver.admin(0x0a, (10, 7))?.result == 0x0003_0003)
    #expect(driver.admin(0x09, (10, 7), (11, 0x0009_0001))?.result == 0x0003_0001)
    #expect(driver.admin(0x09, (10, 7), (11, 0x0000_ffff))?.status == 0x002)
    #expect(driver.admin(0x0a, (10, 6))?.result == 1)
    #expect(driver.admin(0x09, (10, 6), (11, 0))?.status == 0)
    #expect(driver.admin(0x0a, (10, 6))?.result == 0)
    #expect(driver.admin(0x09, (10, 0x0b), (11, 0x100))?.status == 0 && driver.admin(0x0a, (10, 0x0b))?.result == 0x100)
    #expect(driver.admin(0x0a, (10, 1))?.status == 0 && driver.admin(0x0a, (10, 9), (11, 0))?.result == 0x1_0000)
    #expect(driver.makePair(1) == [0, 0] && driver.makePair(3) == [0, 0x101])
    #expect(driver.admin(0x09, (10, 7), (11, 0))?.status == 0x00c)
    // A reset forgets.
    #expect(driver.disable() && driver.enable())
    #expect(driver.admin(0x0a, (10, 6))?.result == 1 && driver.admin(0x0a, (10, 0x0b))?.result == 0)
  }

  @Test("A cache that the driver may not switch stays as it is")
  func fixedCache() throws {
    let driver = try enabled { $0.disk.cacheIsConfigurable = false }
    #expect(driver.admin(0x09, (10, 6), (11, 0))?.status == 0x10e)
    let stable = try enabled {
      $0.disk.cacheIsConfigurable = false
      $0.disk.writeback = false
    }
    #expect(stable.admin(0x09, (10, 6), (11, 1))?.status == 0x002)
  }

  @Test("Queues that cannot be are refused: numbers, sizes, places, vectors, and completion queues that are not there")
  func queueRefusals() throws {
    let driver = try enabled {
      $0.ioQueues = 2
      $0.queueSize = 64
    }
    func create(_ opcode: UInt32, _ number: UInt32, _ size: UInt32, _ eleven: UInt32, at: UInt64 = 0x8_0000) -> UInt16?
    {
      driver.admin(opcode, pointer1: at, (10, number | (size &- 1) << 16), (11, eleven))?.status
    }
    #expect(create(5, 0, 8, 1) == 0x101 && create(5, 3, 8, 1) == 0x101 && create(5, 0xffff, 8, 1) == 0x101)
    #expect(create(5, 1, 1, 1) == 0x102 && create(5, 1, 65, 1) == 0x102 && create(5, 1, 0x10000, 1) == 0x102)
    #expect(
      create(5, 1, 8, 0) == 0x002 && create(5, 1, 8, 1, at: 0x8_0040) == 0x013 && create(5, 1, 8, 3 | 9 << 16) == 0x108)
    #expect(
      create(1, 1, 8, 1 | 1 << 16) == 0x100 && create(1, 1, 8, 1) == 0x100 && create(1, 1, 8, 1 | 0xffff << 16) == 0x100
    )
    #expect(create(5, 1, 64, 1) == 0 && create(5, 1, 64, 1) == 0x101)
    #expect(create(1, 2, 64, 1 | 1 << 16, at: 0x9_0000) == 0)
    // In use, never there, and not to be deleted at all.
    #expect(
      driver.admin(4, (10, 1))?.status == 0x10c && driver.admin(4, (10, 2))?.status == 0x101
        && driver.admin(4, (10, 0))?.status == 0x101)
    #expect(
      driver.admin(0, (10, 1))?.status == 0x101 && driver.admin(0, (10, 0))?.status == 0x101
        && driver.admin(0, (10, 0xffff))?.status == 0x101)
    #expect(
      driver.admin(0, (10, 2))?.status == 0 && driver.admin(4, (10, 1))?.status == 0
        && driver.admin(4, (10, 1))?.status == 0x101)
  }

  @Test("Entries of I/O queues must be of 64 and 16 bytes")
  func entrySizes() throws {
    let driver = LiteralDriver(try Rig())
    #expect(driver.enable(configuration: 1))
    #expect(driver.makePair(1) == [0x102, 0x102])
  }

  @Test(
    "A doorbell of no queue and a value of no entry change nothing and are events; a request waits, and the log page frees the next"
  )
  func events() throws {
    let driver = try enabled()
    for _ in 0..<4 { driver.post(0, 0x0c, []) }
    driver.ring(0)
    let fifth = driver.post(0, 0x0c, [])
    driver.ring(0)
    let refused = driver.take(0)
    #expect(refused?.identifier == fifth && refused?.status == 0x105)
    // A queue that is not there: type 0, what 0, log page 1.
    driver.rig.write32(0x1000 + 8 * 5, 1)
    #expect(driver.take(0)?.result == 0x0001_0000)
    // A tail behind the end: told of only when the log page was read.
    driver.rig.write32(0x1000, 16)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    #expect(
      driver.admin(0x02, namespace: .max, pointer1: LiteralDriver.data, (10, 1 | 15 << 16 | 1 << 15))?.status == 0)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0 && !driver.hasAnswer(0))
    #expect(driver.admin(0x02, namespace: .max, pointer1: LiteralDriver.data, (10, 1 | 15 << 16))?.status == 0)
    #expect(driver.take(0)?.result == 0x0001_0100)
    // The newest error comes first: the fifth request, with its status.
    #expect(bytes(driver, 14)[8..<14] == [0, 0, UInt8(fifth & 255), UInt8(fifth >> 8), 0x0a, 0x02])
    // A head that names answers never written.
    driver.rig.write32(0x1004, 15)
    #expect(driver.admin(0x02, namespace: .max, pointer1: LiteralDriver.data, (10, 1 | 15 << 16))?.status == 0)
    #expect(driver.take(0)?.result == 0x0001_0100)
  }

  @Test("Abort ends a request for events, and says that there was nothing else to end")
  func abort() throws {
    let driver = try enabled()
    let request = driver.post(0, 0x0c, [])
    #expect(driver.admin(0x08, (10, 0x0777 << 16))?.result == 1)
    driver.post(0, 0x08, [(10, UInt32(request) << 16)])
    driver.ring(0)
    let (first, second) = (driver.take(0), driver.take(0))
    #expect(first?.identifier == request && first?.status == 0x007 && second?.status == 0 && second?.result == 0)
  }

  @Test(
    "Log pages: health counts what was done, firmware names its slot, lengths and offsets are kept, others are refused")
  func logs() throws {
    let driver = try enabled()
    #expect(driver.makePair(1) == [0, 0])
    #expect(
      driver.transfer(1, block: 0, blocks: 8, LiteralDriver.data) == 0
        && driver.transfer(2, block: 0, blocks: 8, LiteralDriver.data) == 0)
    driver.rig.store([UInt8](repeating: 0xee, count: 1024), at: LiteralDriver.data)
    #expect(driver.admin(0x02, namespace: .max, pointer1: LiteralDriver.data, (10, 2 | 127 << 16))?.status == 0)
    let health = bytes(driver, 1024)
    #expect(
      health[0] == 0 && health[3] == 100 && health[32] == 1 && health[48] == 1 && health[64] == 1 && health[80] == 1
        && health[512] == 0xee)
    #expect(driver.admin(0x02, namespace: .max, pointer1: LiteralDriver.data, (10, 2 | 0 << 16), (12, 64))?.status == 0)
    #expect(bytes(driver, 8) == [1, 0, 0, 0] + Array(health[4..<8]))
    #expect(driver.admin(0x02, pointer1: LiteralDriver.data, (10, 3 | 127 << 16))?.status == 0)
    #expect(bytes(driver, 16) == [1, 0, 0, 0, 0, 0, 0, 0] + Array("1.0     ".utf8))
    #expect(driver.admin(0x02, pointer1: LiteralDriver.data, (10, 0x42))?.status == 0x109)
    #expect(driver.admin(0x02, pointer1: LiteralDriver.data, (10, 2), (12, 1024))?.status == 0x002)
    #expect(driver.admin(0x02, pointer1: LiteralDriver.data, (10, 2 | 0xffff << 16), (11, 0xffff))?.status == 0x002)
  }
}
