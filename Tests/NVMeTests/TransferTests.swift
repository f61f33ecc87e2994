import MachineKit
import NVMe
import PCI
import Storage
import Testing
import VirtioTestKit

@Suite("I/O commands and their data, as the figures draw them", .timeLimit(.minutes(10))) struct TransferTests {
  private let data = LiteralDriver.data
  private func ready(_ change: (inout NVMeOptions) -> Void = { _ in }) throws -> LiteralDriver {
    LiteralDriver.ready(try Rig(change))
  }

  /// Writes a pattern to the disk's first `blocks` from one flat piece, page by page.
  private func fill(_ driver: LiteralDriver, blocks: UInt32) -> [UInt8] {
    let all = pattern(Int(blocks) * 512, seed: 3)
    for block in stride(from: UInt32(0), to: blocks, by: 8) {
      driver.rig.store(Array(all[Int(block) * 512..<min(Int(block + 8), Int(blocks)) * 512]), at: 0x8_0000)
      #expect(driver.transfer(1, block: block, blocks: min(8, blocks - block), 0x8_0000) == 0)
    }
    return all
  }

  @Test("One page, two pages, and a PRP list that begins inside a page and goes on in another")
  func pages() throws {
    let driver = try ready()
    let rig = driver.rig
    let all = fill(driver, blocks: 128)
    // Inside one page, then over its end into PRP 2.
    #expect(driver.transfer(2, block: 1, blocks: 2, data + 0x800) == 0)
    #expect(rig.load(1024, at: data + 0x800) == Array(all[512..<1536]))
    #expect(driver.transfer(2, block: 0, blocks: 8, data + 0xc00, data + 0x5000) == 0)
    #expect(
      rig.load(0x400, at: data + 0xc00) == Array(all[..<0x400])
        && rig.load(0xc00, at: data + 0x5000) == Array(all[0x400..<0x1000]))
    // 16 pages and a part: entries backwards in memory, four in the first list page, the last of which leads to the
    // next.
    let places = (0..<16).map { data + 0x4_0000 - UInt64($0) * 0x1000 }
    for (i, place) in places.enumerated() {
      let at: UInt64 = i < 3 ? 0x9_0fe0 + UInt64(8 * i) : 0xa_0000 + UInt64(8 * (i - 3))
      rig.store64(place, at: at)
    }
    rig.store64(0xa_0000, at: 0x9_0ff8)
    #expect(driver.transfer(2, block: 0, blocks: 128, data + 0x200, 0x9_0fe0) == 0)
    #expect(rig.load(0xe00, at: data + 0x200) == Array(all[..<0xe00]))
    for (i, place) in places.enumerated() {
      let part = Array(all[0xe00 + i * 4096..<min(0xe00 + (i + 1) * 4096, all.count)])
      #expect(rig.load(part.count, at: place) == part, "page \(i)")
    }
  }

  @Test("Pages of 8 KiB are counted as such")
  func largePages() throws {
    let rig = try Rig()
    let driver = LiteralDriver(rig)
    // The queues of this driver are at multiples of 8 KiB but for the completion queues.
    rig.setCommand([.memorySpace, .busMaster])
    rig.write32(0x24, 0x000f_000f)
    rig.write64(0x28, 0x1_0000)
    rig.write64(0x30, 0x1_2000)
    rig.write32(0x14, 0x0046_0081)
    #expect(rig.interrupts.poll { rig.read32(0x1c) == 1 })
    // Identify: 4096 bytes from 0x1800 into a page of 8 KiB on are all in it but 0x800.
    rig.store([6, 0, 1, 0] + [UInt8](repeating: 0, count: 60), at: 0x1_0000)
    rig.store64(data + 0x1800, data + 0x8000, 1, at: 0x1_0000 + 24)
    rig.write32(0x1000, 1)
    #expect(rig.interrupts.poll { rig.load32(0x1_200c) >> 16 & 1 == 1 })
    #expect(
      rig.load32(0x1_200c) >> 17 == 0 && rig.load(2, at: data + 0x1800) == [0x34, 0x12]
        && rig.load(4, at: data + 0x8000) != [0x6e, 0x71, 0x6e, 0x2e])
    #expect(rig.load(0x800, at: data + 0x2000) == [UInt8](repeating: 0, count: 0x800))
    _ = driver
  }

  @Test(
    "SGLs: one block in the command, a last segment, and segments that lead from one to the next, blocks of no bytes among them",
    arguments: [UInt32(1), 2])
  func descriptors(_ psdt: UInt32) throws {
    let driver = try ready()
    let rig = driver.rig
    let all = fill(driver, blocks: 16)
    func block(_ address: UInt64, _ length: UInt64) -> [UInt64] { [address, length] }
    #expect(driver.transfer(2, block: 0, blocks: 2, data + 3, 1024, psdt: psdt) == 0)
    #expect(rig.load(1024, at: data + 3) == Array(all[..<1024]))
    // A segment of three with its successor, and a last one of two.
    rig.store64(data + 0x1001, 100, data, 0, 0xb_0000, 0x20 | 3 << 60, at: 0xa_0000)
    rig.store64(data + 0x7fff, 3996, data + 0x3000, 4096, at: 0xb_0000)
    #expect(driver.transfer(2, block: 0, blocks: 16, 0xa_0000, 0x30 | 2 << 60, psdt: psdt) == 0)
    #expect(
      rig.load(100, at: data + 0x1001) == Array(all[..<100])
        && rig.load(3996, at: data + 0x7fff) == Array(all[100..<4096]))
    #expect(rig.load(4096, at: data + 0x3000) == Array(all[4096..<8192]))
    // The other way, by a last segment.
    rig.store(pattern(512, seed: 9), at: data + 0x9001)
    rig.store64(data + 0x9001, 200, data + 0x9001 + 200, 312, at: 0xb_0000)
    #expect(driver.transfer(1, block: 3, blocks: 1, 0xb_0000, 0x20 | 3 << 60, psdt: psdt) == 0)
    #expect(driver.transfer(2, block: 3, blocks: 1, data) == 0)
    #expect(rig.load(512, at: data) == pattern(512, seed: 9))
  }

  @Test("A command past the end, too long, of another namespace or fused is refused, and does nothing")
  func refusals() throws {
    let driver = try ready { $0.maxTransfer = 8192 }
    #expect(
      driver.transfer(2, block: 16384, blocks: 1, data) == 0x080
        && driver.transfer(2, block: 16383, blocks: 2, data) == 0x080)
    #expect(driver.io(2, pointer1: data, (10, .max), (11, .max), (12, 0xffff))?.status == 0x002)
    #expect(driver.io(2, pointer1: data, (10, .max), (11, .max), (12, 0))?.status == 0x080)
    #expect(driver.transfer(2, block: 0, blocks: 17, data) == 0x002)
    #expect(
      driver.io(2, namespace: 2, pointer1: data)?.status == 0x00b
        && driver.io(2, namespace: .max, pointer1: data)?.status == 0x00b)
    #expect(driver.io(0x04, pointer1: data)?.status == 0x001 && driver.io(0xff)?.status == 0x001)
    #expect(driver.transfer(2, block: 0, blocks: 1, data, psdt: 3) == 0x002)
    let fused = driver.post(1, 0x102, namespace: 1, pointer1: data, [])
    driver.ring(1)
    let answer = driver.take(1)
    #expect(answer?.identifier == fused && answer?.status == 0x002 && answer?.retry == false && answer?.queue == 1)
    #expect(driver.io(0)?.status == 0 && driver.io(0, namespace: .max)?.status == 0)
  }

  @Test(
    "Write zeroes and deallocate make zeroes of whole ranges and of nothing else; a bad range among good ones does nothing"
  )
  func ranges() throws {
    let driver = try ready()
    let rig = driver.rig
    let all = fill(driver, blocks: 64)
    #expect(
      driver.io(8, (10, 9), (12, 1 | 1 << 25))?.status == 0 && driver.io(8, (10, 16383), (12, 1))?.status == 0x080)
    rig.store64(UInt64(8) << 32, 16, UInt64(1) << 32, 16384, at: data)
    #expect(driver.io(9, pointer1: data, (10, 1), (11, 4))?.status == 0x080)
    rig.store64(UInt64(8) << 32, 16, UInt64(2) << 32, 40, at: data)
    // Only a hint.
    #expect(driver.io(9, pointer1: data, (10, 1), (11, 0))?.status == 0)
    #expect(driver.transfer(2, block: 16, blocks: 8, data + 0x1000) == 0)
    #expect(rig.load(4096, at: data + 0x1000) == Array(all[8192..<12288]))
    #expect(driver.io(9, pointer1: data, (10, 1), (11, 4))?.status == 0)
    for block in 0..<8 {
      #expect(driver.transfer(2, block: UInt32(block * 8), blocks: 8, data + 0x1000 + UInt64(block) * 4096) == 0)
    }
    var expected = all
    for range in [9..<11, 16..<24, 40..<42] {
      for i in range.lowerBound * 512..<range.upperBound * 512 { expected[i] = 0 }
    }
    #expect(rig.load(32768, at: data + 0x1000) == expected)
  }

  @Test("A read-only disk says so, and refuses every change; a disk that cannot discard has no dataset management")
  func readOnly() throws {
    let driver = try ready { $0.disk.readOnly = true }
    #expect(
      driver.admin(6, namespace: 1, pointer1: data, (10, 0))?.status == 0 && driver.rig.load(1, at: data + 99) == [1])
    #expect(
      driver.transfer(1, block: 0, blocks: 1, data) == 0x020 && driver.io(8, (12, 0))?.status == 0x020
        && driver.io(9, pointer1: data, (11, 4))?.status == 0x020)
    #expect(driver.transfer(2, block: 0, blocks: 1, data) == 0 && driver.io(0)?.status == 0)
    let other = try ready { $0.disk.discard = false }
    #expect(other.io(9, pointer1: data, (11, 4))?.status == 0x001)
  }

  @Test("Blocks of 4096 bytes are counted as such")
  func largeBlocks() throws {
    let driver = try ready { $0.disk.logicalBlockSize = 4096 }
    driver.rig.store(pattern(8192), at: data)
    #expect(
      driver.transfer(1, block: 5, blocks: 2, data, data + 0x1000) == 0
        && driver.transfer(2, block: 6, blocks: 1, data + 0x4000) == 0)
    #expect(
      driver.rig.load(4096, at: data + 0x4000) == Array(pattern(8192)[4096...])
        && driver.transfer(2, block: 2048, blocks: 1, data) == 0x080)
  }

  @Test(
    "Queues wrap and phases turn over many rounds, in bursts that fill the completion queue before it is acknowledged")
  func wrapping() throws {
    let driver = try ready()
    for round in 0..<20 {
      // Seven entries fit into eight; three commands more than the completion queue has room for wait.
      let posted = (0..<5).map {
        driver.post(1, 2, namespace: 1, pointer1: data + UInt64($0) * 4096, [(10, UInt32($0)), (12, 0)])
      }
      driver.ring(1)
      let first = posted.map { _ in driver.take(1, acknowledging: false) }
      #expect(first.map { $0?.identifier } == posted && first.allSatisfy { $0?.status == 0 }, "round \(round)")
      let more = (0..<5).map { driver.post(1, 0, namespace: 1, [(10, UInt32($0))]) }
      driver.ring(1)
      let two = (0..<2).map { _ in driver.take(1, acknowledging: false)?.identifier }
      #expect(two == [more[0], more[1]])
      // The admin queue still works, and nothing overwrote an answer that was not acknowledged.
      #expect(driver.admin(0x0a, (10, 7))?.status == 0 && !driver.hasAnswer(1))
      driver.acknowledge(1)
      #expect((2..<5).allSatisfy { driver.take(1)?.identifier == more[$0] })
    }
  }
}
