import DMA
import Foundation
import HostIO
import Synchronization
import Testing
import VhostUser
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("How much memory a guest and a front-end can make a back-end use", .timeLimit(.minutes(10)))
struct MemoryBoundTests {
  private static let queues = 8
  private static let size = 1024
  /// 64 MiB, and 2 MiB a queue; guest memory is not counted.
  private static let limit = (64 + 2 * queues) << 20

  /// Looks at a process' own memory again and again.
  private final class Scales: Sendable {
    let peak = Atomic<Int>(0)
    private let isDone = Atomic<Bool>(false)
    private let process: Int32

    init(_ process: Int32) { self.process = process }

    func run() {
      while !isDone.load(ordering: .acquiring) {
        let text = (try? String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)) ?? ""
        for line in text.split(separator: "\n") where line.hasPrefix("RssAnon:") {
          let bytes =
            (line.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Int($0) } ?? 0) << 10
          peak.max(bytes, ordering: .relaxed)
        }
        usleep(10_000)
      }
    }

    func end() { isDone.store(true, ordering: .releasing) }
  }

  /// Rings whose every descriptor names one indirect table of as many entries as there can be.
  private struct Guest {
    let memory: GuestMemory
    let shift: UInt64
    static let table: UInt64 = 16 << 20
    static let header: UInt64 = 17 << 20
    /// A page for each entry, none next to another's.
    static let pieces: UInt64 = 32 << 20

    func layout(_ queue: Int) -> QueueLayout {
      let base = UInt64(queue) << 16 + shift
      return QueueLayout(
        size: UInt16(MemoryBoundTests.size), descriptorArea: DMAAddress(base), driverArea: DMAAddress(base + 0x5000),
        deviceArea: DMAAddress(base + 0x8000))
    }

    private func write(_ bytes: [UInt8], at address: UInt64) { memory.write(bytes, at: GuestAddress(address)) }
    private func descriptor(_ address: UInt64, _ length: UInt32, _ flags: UInt16, _ next: UInt16) -> [UInt8] {
      (address &+ shift).bytes + length.bytes + flags.bytes + next.bytes
    }

    /// A flush with tens of thousands of pieces.
    func prepare(scattered: Bool) {
      write(UInt32(4).bytes + [UInt8](repeating: 0, count: 12), at: Self.header)
      var table = descriptor(Self.header, 16, 1, 1)
      for i in 1..<32767 as Range<UInt64> {
        table += descriptor(Self.pieces + (scattered ? (i % 8192) * 4096 : (i % 256) * 16), 1, 1, UInt16(i + 1))
      }
      table += descriptor(Self.header + 4096, 1, 2, 0)
      write(table, at: Self.table)
      for queue in 0..<MemoryBoundTests.queues {
        let base = UInt64(queue) << 16
        for i in 0..<UInt64(MemoryBoundTests.size) {
          write(descriptor(Self.table, 16 * 32768, 4, 0), at: base + 16 * i)
          write(UInt16(i).bytes, at: base + 0x5000 + 4 + 2 * i)
        }
      }
    }

    private func half(at address: UInt64) -> UInt16 {
      UInt16(truncatingIfNeeded: memory.bytes(2, at: GuestAddress(address)).word)
    }

    /// Makes everything available that was given back.
    func refill(_ queue: Int) {
      let base = UInt64(queue) << 16
      write((half(at: base + 0x8000 + 2) &+ UInt16(MemoryBoundTests.size)).bytes, at: base + 0x5000 + 2)
    }

    func used(_ queue: Int) -> UInt16 { half(at: UInt64(queue) << 16 + 0x8000 + 2) }
  }

  @Test(
    "Eight queues of chains as long as can be, translations scattered over all addresses, and questions without answers: 64 MiB and 2 MiB a queue"
  )
  func worst() throws {
    let folder = try TemporaryFolder()
    let image = try folder.image(size: 256 << 20)
    let running = try folder.serve(image, socket: "s.sock", "--num-queues", "\(Self.queues)")
    let scales = Scales(running.process.processIdentifier)
    let weighing = try WorkerThread(name: "scales") { scales.run() }
    // Flushes take their time while there is much to flush.
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: image))
    let block = Data(count: 1 << 20)

    // Without an IOMMU: as many long chains in flight as there are descriptors.
    do {
      let features: Features = [.version1, .indirectDescriptors, .blockMultiqueue]
      let frontend = try folder.connect(features, sharing: 96 << 20, timeout: .seconds(60))
      let guest = Guest(memory: frontend.memory.guest, shift: 0)
      guest.prepare(scattered: false)
      let events = try (0..<Self.queues).map { try frontend.startQueue($0, layout: guest.layout($0)) }
      let end = ContinuousClock.now + .seconds(10)
      var at: UInt64 = 0
      while ContinuousClock.now < end {
        for queue in 0..<Self.queues { guest.refill(queue) }
        for event in events { event.kick() }
        try file.seek(toOffset: at << 20)
        try file.write(contentsOf: block)
        at = (at + 1) % 64
        _ = events[0].waitForCall(timeout: .milliseconds(5))
      }
      #expect((0..<Self.queues).contains { guest.used($0) > 0 })
      frontend.close()
    }
    // Behind one: questions that are never answered, and answers that were not asked for, each in a part of memory of
    // its own.
    do {
      let features: Features = [.version1, .indirectDescriptors, .accessPlatform, .blockMultiqueue]
      let frontend = try folder.connect(features, sharing: 96 << 20, timeout: .seconds(60))
      let memory = frontend.memory
      frontend.onMiss { _ in .silence }
      let shift: UInt64 = 1 << 40
      let guest = Guest(memory: memory.guest, shift: shift)
      guest.prepare(scattered: true)
      func tell(_ address: UInt64, _ size: UInt64, at place: UInt64) throws {
        guard let frontendAddress = memory.frontendAddress(of: GuestAddress(place)) else { return #expect(Bool(false)) }
        try frontend.sendTranslation(
          IOTLBMessage(
            kind: .update, address: address, size: size, frontendAddress: frontendAddress.rawValue,
            permission: [.read, .write]))
      }
      // Rings and table; the pieces are what is asked for.
      try tell(shift, 18 << 20, at: 0)
      var corner: UInt64 = 0
      func tellScattered(until end: ContinuousClock.Instant) throws {
        while ContinuousClock.now < end {
          corner &+= 1
          try tell((corner &* 0x9E37_79B9_7F4A_7C15) & 0xffff_ffff_f000 | 1 << 44, 4096, at: 0)
        }
      }
      try tellScattered(until: .now + .seconds(5))
      for queue in 0..<Self.queues {
        let event = try frontend.startQueue(queue, layout: guest.layout(queue))
        guest.refill(queue)
        event.kick()
      }
      try tellScattered(until: .now + .seconds(5))
      #expect(corner > 1000)
      frontend.close()
    }
    scales.end()
    weighing.join()
    let peak = scales.peak.load(ordering: .relaxed)
    #expect(peak > 1 << 20 && peak <= Self.limit, "\(peak >> 20) MiB")
    #expect(running.process.isRunning)
    // How long an end takes in the middle of this is another matter.
    kill(running.process.processIdentifier, SIGKILL)
    _ = try running.end(within: 20)
  }
}
