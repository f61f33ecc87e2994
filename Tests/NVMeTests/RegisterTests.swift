import MachineKit
import NVMe
import PCI
import Testing

@Suite("Registers of the controller, as the figures draw them", .timeLimit(.minutes(10))) struct RegisterTests {
  @Test("Class code, BAR and MSI-X are those of an NVMe controller")
  func identity() throws {
    let rig = try Rig { $0.vectors = 5 }
    #expect(rig.access.readConfiguration(at: 0x08, width: 4) >> 8 == 0x01_08_02)
    // BAR 0: 64 bits, memory, not prefetchable.
    #expect(rig.access.readConfiguration(at: 0x10, width: 4) & 0xf == 4)
    let at = Int(rig.access.readConfiguration(at: 0x34, width: 1))
    #expect(
      rig.access.readConfiguration(at: at, width: 1) == 0x11 && rig.access.readConfiguration(at: at + 2, width: 2) == 4)
  }

  @Test("CAP and VS say what the options say, whole and in halves; reserved and misshapen accesses do nothing")
  func capabilities() throws {
    let rig = try Rig { $0.queueSize = 256 }
    let cap = rig.read64(0x00)
    // MQES, CQR, AMS, TO, DSTRD, CSS, MPSMIN, MPSMAX.
    #expect(
      cap & 0xffff == 255 && cap >> 16 & 1 == 1 && cap >> 17 & 3 == 0 && cap >> 24 & 255 == 40 && cap >> 32 & 15 == 0)
    #expect(cap >> 37 & 255 == 1 && cap >> 48 & 15 == 0 && cap >> 52 & 15 == 4)
    #expect(UInt64(rig.read32(0)) | UInt64(rig.read32(4)) << 32 == cap)
    #expect(rig.read32(0x08) == 0x0001_0400)
    rig.write64(0, .max)
    rig.write32(0x08, .max)
    rig.write32(0x1c, .max)
    #expect(rig.read64(0) == cap && rig.read32(0x08) == 0x0001_0400 && rig.read32(0x1c) == 0)
    rig.access.writeBAR(0, at: 0x24, width: 2, 0xffff)
    rig.access.writeBAR(0, at: 0x25, width: 4, .max)
    #expect(rig.read32(0x24) == 0)
    rig.write32(0x24, .max)
    #expect(rig.read32(0x24) == 0x0fff_0fff)
    rig.write64(0x28, 0x1_2345_6fff)
    #expect(rig.read64(0x28) == 0x1_2345_6000 && rig.read32(0x2c) == 1 && rig.read32(0x28) == 0x2345_6000)
    #expect(rig.read32(0x1000) == 0 && rig.read32(0x3ffc) == 0 && rig.access.readBAR(0, at: 0x0a, width: 1) == 1)
  }

  @Test("Enabled it becomes ready, and idle again when it is disabled; its registers stay")
  func enabling() throws {
    let driver = LiteralDriver(try Rig())
    for _ in 0..<3 {
      #expect(driver.enable())
      // While it is enabled the admin queues are where they were.
      driver.rig.write64(0x28, 0x9_9000)
      #expect(driver.rig.read64(0x28) == LiteralDriver.adminSubmission)
      #expect(driver.admin(0x09, (10, 0x07), (11, 0x0002_0002))?.result == 0x0002_0002)
      #expect(driver.disable())
      #expect(driver.rig.read64(0x28) == LiteralDriver.adminSubmission && driver.rig.read32(0x1c) == 0)
    }
  }

  @Test(
    "What CAP does not offer makes a fatal status, and a reset ends it",
    arguments: [0x0046_0011, 0x0046_0801, 0x0046_0281] as [UInt32])
  func wrongConfiguration(_ configuration: UInt32) throws {
    let driver = LiteralDriver(try Rig())
    #expect(!driver.enable(configuration: configuration))
    #expect(driver.rig.read32(0x1c) == 2)
    driver.rig.write32(0x14, 0)
    #expect(driver.rig.interrupts.poll { driver.rig.read32(0x1c) == 0 })
    #expect(driver.enable())
  }

  @Test("Queues of one entry, and queues that begin inside a page, make a fatal status")
  func wrongQueues() throws {
    let rig = try Rig()
    #expect(!LiteralDriver(rig).enable(size: 1))
    rig.write32(0x14, 0)
    #expect(rig.interrupts.poll { rig.read32(0x1c) == 0 })
    // Pages of 8 KiB, and a queue at an odd one of 4 KiB.
    #expect(!LiteralDriver(rig).enable(configuration: 0x0046_0081))
  }

  @Test("CC.SHN shuts it down and CSTS.SHST says so, until a reset", arguments: [UInt32(1), 2])
  func shutdown(_ kind: UInt32) throws {
    let driver = LiteralDriver(try Rig())
    #expect(driver.enable())
    driver.rig.write32(0x14, 0x0046_0001 | kind << 14)
    #expect(driver.rig.interrupts.poll { driver.rig.read32(0x1c) >> 2 & 3 == 2 })
    #expect(driver.disable())
    #expect(driver.rig.interrupts.poll { driver.rig.read32(0x1c) == 0 })
    #expect(driver.enable())
    #expect(driver.rig.read32(0x1c) == 1)
  }

  @Test("A reset of the bus takes everything back to power-on")
  func busReset() throws {
    let rig = try Rig()
    let driver = LiteralDriver(rig)
    #expect(driver.enable())
    rig.bus.reset()
    #expect(
      rig.controller.status == [] && rig.controller.readBAR(0, at: 0x28, width: 8) == 0
        && rig.controller.readBAR(0, at: 0x14, width: 4) == 0)
  }

  @Test("The pin is asserted while answers wait, unless INTMS masks it; acknowledging them releases it")
  func pin() throws {
    let rig = try Rig()
    let driver = LiteralDriver(rig)
    #expect(driver.enable())
    driver.post(0, 0x0a, [(10, 7)])
    driver.ring(0)
    #expect(rig.interrupts.poll { rig.interrupts.isAsserted(4) })
    rig.write32(0x0c, 1)
    #expect(rig.read32(0x0c) == 1 && rig.read32(0x10) == 1 && !rig.interrupts.isAsserted(4))
    rig.write32(0x10, 1)
    #expect(rig.interrupts.isAsserted(4))
    #expect(driver.take(0)?.status == 0)
    #expect(rig.interrupts.poll { !rig.interrupts.isAsserted(4) })
    #expect(rig.interrupts.data.isEmpty)
  }

  @Test("With MSI-X each completion queue sends its own vector's message, and none without IEN; the pin stays quiet")
  func messages() throws {
    let rig = try Rig()
    let driver = LiteralDriver(rig)
    let at = Int(rig.access.readConfiguration(at: 0x34, width: 1))
    for vector in UInt64(0)..<4 {
      rig.access.writeBAR(4, at: 16 * vector, width: 4, 0xfee0_0000)
      rig.access.writeBAR(4, at: 16 * vector + 8, width: 4, 0x50 + UInt32(vector))
      rig.access.writeBAR(4, at: 16 * vector + 12, width: 4, 0)
    }
    rig.access.writeConfiguration(at: at + 2, width: 2, 0x8000)
    #expect(driver.enable())
    #expect(driver.makePair(1, vector: 3, interrupts: true) == [0, 0] && driver.makePair(2, vector: 2) == [0, 0])
    let before = rig.interrupts.data.count { $0 == 0x50 }
    #expect(before > 0 && !rig.interrupts.data.contains(0x53))
    #expect(driver.io(0x00)?.status == 0)
    #expect(rig.interrupts.poll { rig.interrupts.data.contains(0x53) })
    driver.post(2, 0x00, namespace: 1, [])
    driver.ring(2)
    #expect(driver.take(2)?.status == 0)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    #expect(rig.interrupts.poll { rig.interrupts.data.count { $0 == 0x50 } > before })
    #expect(!rig.interrupts.data.contains(0x52) && !rig.interrupts.isAsserted(4))
    // A vector that is not there.
    let bad = driver.admin(0x05, pointer1: 0x8_0000, (10, 3 | 7 << 16), (11, 3 | 200 << 16))
    #expect(bad?.status == 0x108)
  }
}
