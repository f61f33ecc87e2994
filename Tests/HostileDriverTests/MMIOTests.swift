import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@Suite("A hostile driver: virtio-mmio", .timeLimit(.minutes(10))) struct MMIOTests {
  private static let both = [Transport].mmio + [Transport(bus: .mmioLegacy)]
  private static let legacy = [Transport(bus: .mmioLegacy)]
  /// Status, queue control, InterruptACK and notifications are a driver's right.
  private static let driversOwn: Set<UInt64> = [0x070, 0x044, 0x0c0, 0x040]

  private static let readable: Set<UInt64> = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x060, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0fc,
  ]
  private static let writable: Set<UInt64> = [
    0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0ac, 0x028, 0x03c,
  ]
  private static let table = readable.union(writable)

  @Test(
    "A legacy queue's page is behind the end of memory, or its used ring is", arguments: legacy,
    [UInt64(0xffff_ffff), 0x10])
  func page(_ transport: Transport, _ page: UInt64) throws {
    try attack("4.2.4-3", on: transport, Preparation(stage: .negotiated)) { session, target in
      target.select(0)
      if page == 0x10 { target.poke(0x03c, 4, 0x8000_0000) }
      target.poke(0x040, 4, page)
      session.goLive()
      return session.stoppedOrNot()
    }
  }

  @Test("The device refuses, or nothing comes of it", arguments: Attack.each(attacks))
  func violations(_ one: Attack.Case) throws { try one.run() }

  private static let attacks: [Attack] = [
    // (R040)
    .ignored("Size and addresses are accessed while QueueReady is 1", "4.2.2.2-12", on: .mmio) { _, target in
      target.select(0)
      let before = target.control.queue(0)
      for at in [0x038, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] as [UInt64] {
        _ = target.peek(at, 4)
        target.poke(at, 4, 8)
      }
      guard target.control.queue(0) == before else { throw Failure("a queue in use was moved") }
    },
    .ignored("Registers are accessed that are not in the table, and far behind it", "4.2.2.2-1", on: both) {
      _, target in
      for at in stride(from: UInt64(0), to: 0x100, by: 4)
      where !Self.driversOwn.contains(at) && !Self.table.contains(at) {
        _ = target.peek(at, 4)
        target.poke(at, 4, .max)
      }
      for at in [0x160, 0x1000, 0x7fff_fffc, 0xffff_fffc, UInt64.max - 3] {
        _ = target.peek(at, 4)
        target.poke(at, 4, .max)
      }
    },
    .ignored("Read-only registers are written", "4.2.2.2-2", on: both) { _, target in
      for at in Self.readable where at != 0x060 {
        let before = target.peek(at, 4)
        target.poke(at, 4, ~before & 0xffff_ffff)
        guard target.peek(at, 4) == before else { throw Failure("register \(at) changed") }
      }
      target.poke(0x060, 4, 3)
    },
    .ignored("Write-only registers are read", "4.2.2.2-3", on: both) { _, target in
      for at in Self.writable where target.peek(at, 4) != 0 { throw Failure("register \(at) shows something") }
    },
    .ignored("Registers are accessed in other widths, and between each other", "4.2.2.2-4", on: both) { _, target in
      for at in UInt64(0)..<0x100 {
        for width in [1, 2, 3, 4, 8] where width != 4 || at % 4 != 0 {
          _ = target.peek(at, width)
          target.poke(at, width, 0)
          target.poke(at, width, .max)
        }
      }
    },
    .ignored(
      "DeviceFeatures is read for a word that was not chosen, or does not exist", "4.2.2.2-9", on: both, stage: .found
    ) { session, target in
      for word in [UInt64(0xffff_ffff), 4, 100] {
        target.poke(0x014, 4, word)
        guard target.peek(0x010, 4) == 0 else { throw Failure("there is no word \(word)") }
      }
      _ = target.peek(0x010, 4)
      try session.begin()
    },
    .ignored(
      "DriverFeatures is written for a word that was not chosen, or does not exist", "4.2.2.2-10", on: both,
      stage: .found
    ) { session, target in
      target.driver.status = []
      for word in [UInt64(0xffff_ffff), 4, 100] {
        target.poke(0x024, 4, word)
        target.poke(0x020, 4, .max)
      }
      guard (0..<4).allSatisfy({ target.control.driverFeatures(word: UInt32($0)) == 0 }) else {
        throw Failure("features were taken")
      }
      try session.begin()
    },
    .ignored(
      "QueueSize is larger than QueueSizeMax, or nothing that a queue can have", "4.2.2.2-11", on: both,
      stage: .negotiated
    ) { session, target in
      target.select(0)
      target.poke(0x038, 4, 16)
      for size in [0, 17, 32, 0x8000, 0x1_0010, 0xffff_ffff] as [UInt64] { target.poke(0x038, 4, size) }
      guard target.control.queue(0)?.size == 16 else { throw Failure("the size changed") }
      session.enable()
      session.goLive()
    },
    .ignored("A queue is stopped in the middle of things, and QueueReady is not read back", "4.2.2.2-13", on: .mmio) {
      session, target in
      session.beginRead()
      target.select(0)
      target.poke(0x044, 4, 0)
      // Its memory is something else now.
      let was = target.literal.read(64, at: session.layout.descriptorArea)
      target.literal.write([UInt8](repeating: 0x77, count: 64), at: session.layout.descriptorArea)
      session.notify()
      guard !target.control.isRunning(0),
        target.literal.read(64, at: session.layout.descriptorArea) == [UInt8](repeating: 0x77, count: 64)
      else {
        throw Failure("a stopped queue was touched")
      }
      target.literal.write(was, at: session.layout.descriptorArea)
      session.restartRing()
      session.enable()
    },
    .ignored("QueueReady is something else than 0 and 1, of a queue that does not exist", "4.2.2.2-13", on: .mmio) {
      _, target in
      for index in [0, 1, 0xffff, 0xffff_ffff] {
        target.select(index)
        for value in [2, 0x100, 0xffff_ffff] as [UInt64] { target.poke(0x044, 4, value) }
        if index > 0 {
          target.poke(0x044, 4, 1)
          target.poke(0x044, 4, 0)
        }
      }
    },
    Attack("Interrupts are acknowledged that never came, with bits that are none", "4.2.2.2-16", on: both) {
      session, target in
      target.poke(0x064, 4, 0xffff_ffff)
      guard session.works() else { return .noAnswer }
      target.poke(0x064, 4, 0xffff_fffc)
      return .untouched
    },
    Attack(
      "InterruptStatus is never read, and nothing is ever acknowledged", "4.2.2.2-15", "4.2.3.4.1-1", "4.2.3.4.1-2",
      on: both
    ) { session, target in
      for _ in 0..<5 where !session.works() { return .noAnswer }
      guard target.peek(0x060, 4) & 1 == 1 else { throw Failure("InterruptStatus forgot") }
      return .untouched
    },
    .ignored("The shared memory registers are used of a device without shared memory", "4.2.3.1.1-3", on: .mmio) {
      _, target in
      for id in [0, 1, 0xff, 0xffff_ffff] as [UInt64] {
        target.poke(0x0ac, 4, id)
        for at in [0x0b0, 0x0b4, 0x0b8, 0x0bc] as [UInt64] {
          target.poke(at, 4, 0)
          guard target.peek(at, 4) == 0xffff_ffff else { throw Failure("region \(id) exists") }
        }
      }
    },
    .ignored("A legacy driver never writes its page size", "4.2.4-1", on: legacy, stage: .negotiated) {
      session, target in
      for size in [0, 3, 0x1001, 0xffff_ffff] as [UInt64] { target.poke(0x028, 4, size) }
      // Only 0 was a size to take; and a page number without a size is nowhere.
      target.select(0)
      target.poke(0x040, 4, 0x20)
      session.goLive()
      session.notify()
      guard target.peek(0x040, 4) == 0, !target.control.isRunning(0) else {
        throw Failure("a queue runs that is nowhere")
      }
      target.poke(0x028, 4, 4096)
      session.enable()
    },
    .ignored("A legacy queue's alignment is none", "4.2.4-2", on: legacy, stage: .negotiated) { session, target in
      session.enable()
      for value in [0, 1, 2, 3, 48, 0xffff_ffff] as [UInt64] { target.poke(0x03c, 4, value) }
      target.poke(0x040, 4, Session.firstBase / 4096)
      session.goLive()
    },
  ]
}
