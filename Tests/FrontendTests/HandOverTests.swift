import DMA
import Foundation
import FrontendKit
import HostIO
import Logging
import Storage
import Testing
import VhostUser
import VhostUserBackend
import VhostUserFrontend
import Virtio
import VirtioBlock
import VirtioTestKit

@Suite("A disk that hands over what is in flight", .timeLimit(.minutes(10))) struct HandOverTests {
  @Test(
    "Stopped again and again in the middle of its work, with GET_VRING_BASE_INFLIGHT, a disk does every request once in the end",
    arguments: [false, true])
  func underLoad(_ packed: Bool) throws {
    let scratch = try TemporaryFolder()
    let path = try scratch.image(size: 4 << 20)
    var options = BlockOptions(path: path)
    options.engine = .automatic
    let (near, far) = try UnixSocket.pair()
    let server = try VhostUserServer(try BlockDevice(options), on: .connected(far), log: .silent)
    let thread = try WorkerThread(name: "back-end") { try? server.run() }
    let frontend = try Frontend(near, memory: FrontendMemory(byteCount: 1 << 20))
    try frontend.negotiate(
      packed ? [.version1, .ringPacked] : .version1,
      protocolFeatures: Frontend.usualProtocolFeatures.union(.vringBaseInflight))
    try #require(frontend.protocolFeatures.contains(.vringBaseInflight))
    try frontend.share()
    try frontend.install(try frontend.makeInflight(queueCount: 1, queueSize: 128))
    let place = BlockClientPlace(base: GuestAddress(0x1000), queueSize: 128, slots: 32, slotBytes: 4096)
    var disk = try BlockClient(frontend, queue: 0, place: place)
    var events = disk.events
    for round in 0..<8 as Range<UInt64> {
      var waiting: Set<Int> = []
      for i in 0..<32 as Range<UInt64> {
        disk.prepare(pattern(4096, seed: round * 32 + i))
        let slot = try disk.add(.write, sector: (round * 32 + i) * 8, count: 4096)
        waiting.insert(try #require(slot))
      }
      if disk.publishOnly() { events.kick() }
      for _ in 0..<3 {
        let state = try frontend.stopQueue(0)
        events = try frontend.startQueue(0, layout: events.layout, resumingAt: state)
      }
      while !waiting.isEmpty {
        guard let done = try disk.reap() else {
          guard !disk.armCall() else { continue }
          try #require(events.waitForCall(timeout: .seconds(10)), "\(waiting.count) requests are lost")
          continue
        }
        #expect(done.status == 0 && waiting.remove(done.slot) != nil)
      }
    }
    _ = try frontend.stopQueue(0)
    #expect(try disk.reap() == nil)
    frontend.close()
    thread.join()
    let image = try Data(contentsOf: URL(fileURLWithPath: path))
    for block in 0..<256 {
      try #require([UInt8](image[4096 * block..<4096 * (block + 1)]) == pattern(4096, seed: UInt64(block)))
    }
  }
}
