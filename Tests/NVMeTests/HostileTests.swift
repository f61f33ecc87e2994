import MachineKit
import NVMe
import PCI
import Testing
import VirtioTestKit

@Suite("Hostile drivers of the controller", .timeLimit(.minutes(10))) struct HostileTests {
  private let data = LiteralDriver.data

  @Test("PRPs with offsets, lists at odd places and lists that lead back to themselves are refused and touch no data")
  func pages() throws {
    let driver = LiteralDriver.ready(try Rig())
    let rig = driver.rig
    rig.store([UInt8](repeating: 0xee, count: 0x8000), at: data)
    #expect(driver.transfer(2, block: 0, blocks: 1, data + 1) == 0x013)
    #expect(driver.transfer(2, block: 0, blocks: 16, data, data + 0x1200) == 0x013)
    #expect(driver.transfer(2, block: 0, blocks: 24, data, 0x9_0004) == 0x013)
    rig.store64(data + 0x1000, data + 0x2008, at: 0x9_0000)
    #expect(driver.transfer(2, block: 0, blocks: 24, data, 0x9_0000) == 0x013)
    // The last entry of a page leads into the middle of one.
    rig.store64(data + 0x1000, 0x9_0ff0, at: 0x9_0ff0)
    #expect(driver.transfer(2, block: 0, blocks: 32, data, 0x9_0ff0) == 0x013)
    #expect(rig.load(0x8000, at: data) == [UInt8](repeating: 0xee, count: 0x8000))
    // A list that is its own successor ends with the data: every entry is the list itself.
    for i in 0..<UInt64(512) { rig.store64(0x9_0000, at: 0x9_0000 + 8 * i) }
    #expect(driver.transfer(1, block: 0, blocks: 2048, 0x9_0000, 0x9_0ff8) == 0)
    #expect(driver.transfer(1, block: 0, blocks: 0x1_0000, 0x9_0000, 0x9_0ff8) == 0x002)
  }

  @Test("SGLs of unknown types, wrong lengths, wrong places and in circles are refused by name and touch no data")
  func descriptors() throws {
    let driver = LiteralDriver.ready(try Rig())
    let rig = driver.rig
    rig.store([UInt8](repeating: 0xee, count: 0x8000), at: data)
    func read(_ low: UInt64, _ high: UInt64) -> UInt16? { driver.transfer(2, block: 0, blocks: 2, low, high, psdt: 1) }
    func segment(_ words: UInt64...) {
      for (i, word) in words.enumerated() { rig.store64(word, at: 0xa_0000 + UInt64(8 * i)) }
    }
    for type in [UInt64(1), 4, 5, 15] { #expect(read(data, 1024 | type << 60) == 0x011) }
    #expect(read(data, 1024 | 1 << 56) == 0x011)
    #expect(
      read(data, 1023) == 0x00f && read(data, 1025) == 0x00f && read(data, 0) == 0x00f
        && read(data, 0xffff_ffff) == 0x00f)
    #expect(read(0xa_0000, 0 | 3 << 60) == 0x00d && read(0xa_0000, 17 | 2 << 60) == 0x00d)
    #expect(read(0xa_0000, 0xffff_fff0 | 3 << 60) == 0x00e)
    // A segment with nothing after it, one in the middle, and one in the last.
    segment(data, 1024, data, 0)
    #expect(read(0xa_0000, 32 | 2 << 60) == 0x00d)
    segment(0xb_0000, 16 | 3 << 60, data, 1024)
    #expect(read(0xa_0000, 32 | 2 << 60) == 0x00e)
    segment(data, 1024, 0xb_0000, 16 | 3 << 60)
    #expect(read(0xa_0000, 32 | 3 << 60) == 0x00e)
    // A circle.
    segment(data, 0, 0xa_0000, 32 | 2 << 60)
    #expect(read(0xa_0000, 32 | 2 << 60) == 0x00e)
    // Blocks enough, and then one of another type.
    segment(data, 512, data + 512, 512, data, 0 | 1 << 60)
    #expect(read(0xa_0000, 48 | 3 << 60) == 0x011)
    #expect(rig.load(0x8000, at: data) == [UInt8](repeating: 0xee, count: 0x8000))
    #expect(read(data, 1024) == 0)
  }

  @Test("SGLs that are not offered are refused")
  func noSGLs() throws {
    let driver = LiteralDriver.ready(try Rig { $0.offersSGLs = false })
    #expect(driver.transfer(2, block: 0, blocks: 1, data, 512, psdt: 1) == 0x002)
  }

  @Test(
    "Where memory ends a command fails with a data transfer error before a byte moves, at any page",
    arguments: [0, 1, 7])
  func holes(_ bad: Int) throws {
    let driver = LiteralDriver.ready(try Rig())
    let rig = driver.rig
    rig.store([UInt8](repeating: 0xee, count: 0x1_0000), at: data)
    // Eight pages after the first, one of them far away.
    for i in 0..<8 {
      rig.store64(i == bad ? 0xffff_ffff_ffff_f000 : data + 0x1000 * UInt64(i + 1), at: 0x9_0000 + 8 * UInt64(i))
    }
    #expect(driver.transfer(2, block: 0, blocks: 72, data, 0x9_0000) == 0x004)
    #expect(rig.load(0x1_0000, at: data) == [UInt8](repeating: 0xee, count: 0x1_0000))
    #expect(driver.transfer(1, block: 0, blocks: 72, data, 0x9_0000) == 0x004)
    #expect(
      driver.transfer(2, block: 0, blocks: 1, data) == 0 && rig.load(512, at: data) == [UInt8](repeating: 0, count: 512)
    )
    // Lists and segments out of memory.
    #expect(driver.transfer(2, block: 0, blocks: 72, data, 0xffff_ffff_ffff_f000) == 0x004)
    #expect(
      driver.transfer(2, block: 0, blocks: 2, .max - 15, 16 | 3 << 60, psdt: 1) == 0x004
        && driver.transfer(2, block: 0, blocks: 2, .max - 100, 1024, psdt: 1) == 0x004)
  }

  @Test(
    "Random garbage in both queues and at all registers: every command is answered or the status is fatal, and a reset helps",
    arguments: 0..<6)
  func garbage(_ seed: UInt64) throws {
    let rig = try Rig()
    let driver = LiteralDriver.ready(rig)
    var state = seed &* 0x9e37_79b9_7f4a_7c15 &+ 1
    func random() -> UInt32 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return UInt32(truncatingIfNeeded: state >> 33) ^ UInt32(truncatingIfNeeded: state >> 13)
    }
    for _ in 0..<400 {
      let queue = Int(random() % 2)
      var words: [(Int, UInt32)] = (1..<16).map { ($0, random() % 3 == 0 ? random() : random() & 0xff) }
      if random() % 2 == 0 { words.append((1, 1)) }
      if random() % 2 == 0 { words += [(6, 0x10_0000), (7, 0), (8, 0x11_0000), (9, 0), (12, random() & 15), (11, 0)] }
      // Its own queues stay: nothing deletes or makes one.
      let opcodes: [UInt32] = queue == 0 ? [2, 6, 8, 9, 10, 0x7f, 0x80] : [0, 1, 2, 5, 8, 9, 0xff]
      driver.post(queue, opcodes[Int(random()) % opcodes.count], psdt: random() & 3, words)
      driver.ring(queue)
      if driver.take(queue) == nil { break }
      if random() % 20 == 0 { rig.write32(0x1000 + UInt64(random() % 64) * 4 + 16, random()) }
    }
    for _ in 0..<400 { rig.write32(UInt64(random() % 0x400) * 4 & ~0xc, random()) }
    rig.bus.reset()
    #expect(rig.controller.status == [])
  }

  @Test(
    "A tail or a head rewritten at will, queues deleted with commands in them, and the same memory for everything: it stays well"
  )
  func queueGames() throws {
    let rig = try Rig()
    let driver = LiteralDriver.ready(rig)
    for i in 0..<7 { driver.post(1, 2, namespace: 1, pointer1: data, [(10, UInt32(i)), (12, 0)]) }
    driver.ring(1)
    #expect(driver.admin(0, (10, 1))?.status == 0 && driver.admin(4, (10, 1))?.status == 0)
    rig.write32(0x1008, 3)
    #expect(driver.makePair(1) == [0, 0] && driver.transfer(2, block: 0, blocks: 1, data) == 0)
    // A completion queue over its own submission queue: commands are what the controller wrote.
    #expect(
      driver.admin(5, pointer1: 0x8_0000, (10, 2 | 7 << 16), (11, 1))?.status == 0
        && driver.admin(1, pointer1: 0x8_0000, (10, 2 | 7 << 16), (11, 1 | 2 << 16))?.status == 0)
    for tail in [UInt32(7), 3, 0, 7, 2] { rig.write32(0x1010, tail) }
    #expect(driver.admin(0x0a, (10, 7))?.status == 0 && driver.transfer(2, block: 0, blocks: 1, data) == 0)
  }

  @Test("Without bus mastering the controller fails and touches nothing; with it, after a reset, it works (R039)")
  func busMaster() throws {
    let rig = try Rig()
    let driver = LiteralDriver(rig)
    #expect(driver.enable(command: [.memorySpace]))
    driver.post(0, 6, pointer1: data, [(10, 1)])
    driver.ring(0)
    #expect(rig.interrupts.poll { rig.read32(0x1c) == 3 })
    #expect(!driver.hasAnswer(0) && rig.load(4096, at: data) == [UInt8](repeating: 0, count: 4096))
    #expect(driver.disable())
    #expect(LiteralDriver.ready(rig).transfer(2, block: 0, blocks: 1, data) == 0)
  }

  @Test(
    "Resets while commands run: each ends in an idle controller that works again, and leaves memory alone afterwards")
  func resetUnderLoad() throws {
    let rig = try Rig()
    for round in 0..<20 {
      let driver = LiteralDriver.ready(rig)
      driver.beginReads()
      if round % 2 == 0 {
        #expect(driver.disable())
      } else {
        rig.controller.reset()
        rig.access.writeConfiguration(at: 0x10, width: 4, UInt32(truncatingIfNeeded: rig.access.base(0)))
        rig.access.writeConfiguration(at: 0x14, width: 4, UInt32(truncatingIfNeeded: rig.access.base(0) >> 32))
        rig.setCommand([.memorySpace])
        #expect(rig.read32(0x1c) == 0)
      }
      rig.store([UInt8](repeating: 0xee, count: 0x2000), at: data)
      driver.ring(1)
      #expect(rig.load(0x2000, at: data) == [UInt8](repeating: 0xee, count: 0x2000))
    }
  }

  @Test(
    "Processors that write registers and ring doorbells at random, all at once, change nothing about the controller's health after a reset"
  )
  func crowd() throws {
    let rig = try Rig()
    let driver = LiteralDriver.ready(rig)
    for i in 0..<7 {
      driver.post(1, 2, namespace: 1, pointer1: data, pointer2: data + 0x1000, [(10, UInt32(i)), (12, 15)])
    }
    let (bus, base) = (rig.bus, rig.access.base(0))
    let threads = (0..<3).map { thread in
      WorkThread {
        for i in UInt64(0)..<3000 {
          let random = ((i &* 3 &+ UInt64(thread)) &* 0x9e37_79b9_7f4a_7c15) >> 40
          switch random % 8 {
          case 0: bus.write(memory: base + 0x14, width: 4, random % 16 == 0 ? 0x0046_0000 : 0x0046_0001)
          case 1: bus.write(memory: base + (random & 1 == 0 ? 0x0c : 0x10), width: 4, random >> 8)
          case 2: bus.write(memory: base + 0x24 + (random >> 4) % 4 * 4, width: 4, random)
          case 3: _ = bus.read(memory: base + (random >> 4) % 0x400 * 4, width: 4)
          default: bus.write(memory: base + 0x1000 + (random >> 4) % 8 * 4, width: 4, (random >> 8) % 10)
          }
        }
      }
    }
    for thread in threads { #expect(thread.join(seconds: 60)) }
    #expect(driver.disable())
    rig.write32(0x14, 0)
    #expect(rig.interrupts.poll { rig.read32(0x1c) == 0 })
    #expect(LiteralDriver.ready(rig).transfer(2, block: 0, blocks: 1, data) == 0)
  }

  @Test("A controller is unplugged under load, and reaches nothing afterwards")
  func unplug() throws {
    for _ in 0..<10 {
      let rig = try Rig()
      let driver = LiteralDriver.ready(rig)
      driver.beginReads()
      rig.bus.remove(rig.controller)
      rig.store([UInt8](repeating: 0xee, count: 0x2000), at: data)
      #expect(rig.read32(0x1c) == .max && rig.load(0x2000, at: data) == [UInt8](repeating: 0xee, count: 0x2000))
    }
  }
}
