import DMA
import Foundation
import FrontendKit
import Testing
import VhostUserFrontend
import Virtio
import VirtioTestKit

/// The front-end against a back-end of another project (qemu-storage-daemon).
@Suite("A peer's back-end", .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-storage-daemon")))
struct StorageDaemonTests {
  static let wanted: Features = [
    .version1, .eventIndex, .indirectDescriptors, Features(bit: 9), Features(bit: 12), Features(bit: 6),
  ]

  private let scratch: TemporaryFolder

  init() throws { scratch = try TemporaryFolder() }

  private func daemon(queues: Int = 1) throws -> BackendProcess {
    let image = try scratch.image(size: 16 << 20)
    let daemon = try #require(try BackendProcess.storageDaemon(image: image, directory: scratch.url, queues: queues))
    try #require(daemon.waitForSocket(), "\(daemon.output)")
    return daemon
  }

  @Test("Blocks written through one queue are read back, and are in the image")
  func readAndWrite() throws {
    let daemon = try daemon()
    let frontend = try daemon.connect(memory: FrontendMemory(byteCount: 8 << 20))
    try frontend.negotiate(Self.wanted)
    #expect(frontend.features.contains(.version1))
    try frontend.share()
    let place = BlockClientPlace(base: GuestAddress(0x10000), queueSize: 64, slots: 16, slotBytes: 4096)
    var disk = try BlockClient(frontend, queue: 0, place: place)
    for block in 0..<100 { try disk.write(sector: UInt64(block * 8), pattern(4096, seed: UInt64(block))) }
    for block in (0..<100).reversed() {
      #expect(try disk.read(sector: UInt64(block * 8), count: 4096) == pattern(4096, seed: UInt64(block)))
    }
    try disk.flush()
    let image = try Data(contentsOf: scratch.url.appendingPathComponent("disk.img"))
    #expect([UInt8](image[4096 * 42..<4096 * 43]) == pattern(4096, seed: 42))
    let state = try frontend.stopQueue(0)
    #expect(state.available == 201)
  }

  @Test("Two queues and indirect descriptors work, with many requests at once")
  func manyAtOnce() throws {
    let daemon = try daemon(queues: 2)
    let frontend = try daemon.connect(memory: FrontendMemory(byteCount: 8 << 20))
    try frontend.negotiate(Self.wanted)
    #expect(frontend.queueCount == 2)
    try frontend.share()
    let first = BlockClientPlace(base: GuestAddress(0), queueSize: 128, slots: 32, slotBytes: 4096)
    let second = BlockClientPlace(base: first.end, queueSize: 128, slots: 32, slotBytes: 4096)
    var a = try BlockClient(frontend, queue: 0, place: first, indirect: true)
    var b = try BlockClient(frontend, queue: 1, place: second)
    for round in 0..<20 {
      for i in 0..<32 {
        a.prepare(pattern(4096, seed: UInt64(round * 64 + i)))
        _ = try a.add(.write, sector: UInt64((round * 64 + i) * 8), count: 4096)
        b.prepare(pattern(4096, seed: UInt64(round * 64 + 32 + i)))
        _ = try b.add(.write, sector: UInt64((round * 64 + 32 + i) * 8), count: 4096)
      }
      a.publish()
      b.publish()
      for _ in 0..<32 {
        let first = try a.wait()
        let second = try b.wait()
        #expect(first.status == 0 && second.status == 0)
      }
    }
    for block in stride(from: 0, to: 20 * 64, by: 37) {
      #expect(try a.read(sector: UInt64(block * 8), count: 4096) == pattern(4096, seed: UInt64(block)))
    }
  }

  @Test("The configuration space tells the capacity")
  func configuration() throws {
    let daemon = try daemon()
    let frontend = try daemon.connect(memory: FrontendMemory(byteCount: 1 << 20))
    try frontend.negotiate(Self.wanted)
    let bytes = try frontend.readConfiguration(count: 8)
    #expect(bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } == (16 << 20) / 512)
  }

  @Test("A status asked of a back-end without STATUS is an error of ours, and the session lives")
  func notNegotiated() throws {
    let daemon = try daemon()
    let frontend = try daemon.connect()
    try frontend.negotiate(Self.wanted)
    #expect(throws: FrontendError.notNegotiated("GET_STATUS", needs: "STATUS")) { try frontend.status() }
    #expect(frontend.failure == nil)
  }

  @Test("A back-end killed in the middle ends the front-end's waits with an error")
  func killed() throws {
    let daemon = try daemon()
    let frontend = try daemon.connect()
    try frontend.negotiate(Self.wanted)
    daemon.kill()
    #expect(frontend.waitUntilClosed(timeout: .seconds(5)))
    #expect(throws: FrontendError.self) { try frontend.stopQueue(0) }
  }
}
