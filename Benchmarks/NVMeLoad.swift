import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import NVMe
import PCI
import Storage
import VirtioTestKit

/// An NVMe controller on a bus of this process, and its driver, which keeps so many commands under way. One thread uses
/// it; the controller has a thread of its own.
final class NVMeLoad {
  /// Interrupts of the I/O queue wake the driver; pins are not used.
  private final class Interrupts: MessageInterrupts, LineInterrupts {
    let event: EventFD
    init() throws { event = try EventFD() }
    func deliver(_ message: InterruptMessage, from requester: RequesterID) { event.signal() }
    func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) {}
  }
  /// Bytes of a command.
  static var blockBytes: Int { 4096 }
  private static var buffers: UInt64 { 8 << 20 }

  private let bus: PCIBus
  private let interrupts: Interrupts
  private let driver: NVMeDriver
  private let depth: Int
  private let blocks: UInt64
  private let isWrite: Bool
  private var random: UInt64 = 88_172_645_463_325_252

  init(_ disk: DiskOptions, depth: Int, isWrite: Bool, hasShadow: Bool) throws {
    let interrupts = try Interrupts()
    self.interrupts = interrupts
    let memory = try GuestMemory(byteCount: 16 << 20)
    bus = PCIBus(memory, messages: interrupts, lines: interrupts)
    _ = try bus.add(at: PCISlot(0)) { master throws(NVMeError) in try NVMeController(NVMeOptions(disk), on: master) }
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    guard let found = firmware.enumerate().first else { throw BenchFailure("the bus is empty") }
    let messages = (0..<2).map { InterruptMessage(address: 0xfee0_0000, data: $0) }
    let event = interrupts.event
    var options = NVMeDriverOptions(
      queueSize: 128, messages: messages,
      wait: BoundedWait(attempts: 1000) {
        _ = try? event.wait(timeout: .milliseconds(20))
        _ = try? event.drain()
      })
    options.usesShadowDoorbells = hasShadow
    driver = try NVMeDriver(
      PCIBusAccess(bus, found), mapper: DirectMapper(GuestPages(memory, at: GuestAddress(0), byteCount: 8 << 20)),
      options: options)
    self.depth = depth
    self.isWrite = isWrite
    blocks = driver.blockCount * UInt64(driver.blockSize) / UInt64(Self.blockBytes)
  }

  deinit { try? driver.stop() }

  private func submit(_ slot: Int) throws -> NVMeTag {
    random ^= random << 13
    random ^= random >> 7
    random ^= random << 17
    let block = random % blocks * UInt64(Self.blockBytes / driver.blockSize)
    let at = Self.buffers + UInt64(slot * Self.blockBytes)
    let data: InlineArray<1, GuestSegment> = [GuestSegment(GuestAddress(at), count: UInt32(Self.blockBytes))]
    return isWrite ? try driver.submitWrite(block, from: data.span) : try driver.submitRead(block, into: data.span)
  }

  /// So many commands, ``depth`` of them under way.
  func run(commands: Int) throws {
    var slots: [NVMeTag: Int] = [:]
    var begun = 0
    for slot in 0..<min(depth, commands) {
      slots[try submit(slot)] = slot
      begun += 1
    }
    driver.publish()
    while !slots.isEmpty {
      var ended = 0
      while let completion = try driver.reap() {
        if let error = completion.error { throw error }
        guard let slot = slots.removeValue(forKey: completion.tag) else {
          throw BenchFailure("an unknown command ended")
        }
        ended += 1
        if begun < commands {
          slots[try submit(slot)] = slot
          begun += 1
        }
      }
      driver.publish()
      guard ended == 0 else { continue }
      guard try interrupts.event.wait(timeout: .seconds(20)) else { throw BenchFailure("no command ended in 20 s") }
      _ = try interrupts.event.drain()
    }
  }
}
