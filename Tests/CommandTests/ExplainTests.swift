import DMA
import Foundation
import FrontendKit
import HostIO
import Testing
import VhostUser
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("Explain", .serialized) struct ExplainTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  @Test("Before a front-end has connected, words and JSON agree that nothing can be reached")
  func nobody() throws {
    let running = try folder.serve()
    let words = try Command.run("explain", folder.path("s.sock"))
    #expect(words.status == 0)
    #expect(words.output.contains("virtio-blk"))
    #expect(words.output.contains("no front-end has connected yet"))
    #expect(words.output.contains("VIRTIO_F_ACCESS_PLATFORM: to be offered"))
    #expect(words.output.contains("no guest memory is known yet"))
    let json = try Command.run("explain", "--json", folder.path("s.sock"))
    let object = try json.object
    #expect(object["connected"] as? Bool == false)
    #expect(object["access_platform_offered"] as? Bool == true)
    #expect(object["reachable_bytes"] as? Int == 0)
    #expect(object["faults"] as? Int == 0)
    #expect(json.output.split(separator: "\n").count == 1)
    try running.expectCleanEnd()
  }

  @Test("A socket that is not there, and one without a listener, are told apart, status 1")
  func unreachable() throws {
    let none = try Command.run("explain", folder.path("none.sock"))
    #expect(none.status == 1)
    #expect(none.errors.contains("there is no socket"))
    let running = try folder.serve()
    kill(running.process.processIdentifier, SIGKILL)
    _ = try running.end(within: 10)
    let stale = try Command.run("explain", folder.path("s.sock"))
    #expect(stale.status == 1)
    #expect(stale.errors.contains("has no listener"))
  }

  @Test("What is no socket is not taken for a back-end that ended, status 1")
  func noSocket() throws {
    for path in [folder.url.path, try folder.image()] {
      let result = try Command.run("explain", path)
      #expect(result.status == 1)
      #expect(result.errors.contains("is not a socket"))
    }
  }

  @Test("A listener that is no back-end of ours is told apart, status 1")
  func stranger() throws {
    let listener = try UnixListener(path: folder.path("s.sock"))
    let running = try Command.Running(["explain", folder.path("s.sock")])
    // Takes the call, and hangs up on every request.
    let socket = try #require(try listener.accept(timeout: .seconds(10)))
    #expect(try socket.waitReadable(timeout: .seconds(10)))
    socket.shutdown()
    let result = try running.end(within: 10)
    #expect(result.status == 1)
    #expect(result.errors.contains("does not answer"))
  }

  /// The answer in JSON.
  private func figures() throws -> [String: Any] {
    let answer = try Command.run("explain", "--json", folder.path("s.sock"))
    return try answer.object
  }

  private func words() throws -> String { try Command.run("explain", folder.path("s.sock")).output }

  @Test(
    "With a front-end behind an IOMMU the answer says so, how much is reachable of how much, and what each queue did; and keeps that"
  )
  func confined() throws {
    let running = try folder.serve(with: "--num-queues", "2")
    let mappings = FrontendMappings()
    let frontend = try Frontend.connect(
      to: folder.path("s.sock"), memory: FrontendMemory(byteCount: 8 << 20), mappings: mappings)
    // Connected, and nothing agreed on yet.
    #expect(try frontend.ask(.getFeatures) != 0)
    #expect(try words().contains("VIRTIO_F_ACCESS_PLATFORM: offered; features are not negotiated yet"))
    try frontend.negotiate([.version1, .accessPlatform, .blockMultiqueue])
    try frontend.share()
    let shift: UInt64 = 0x10_0000_0000
    let place = BlockClientPlace.usual
    let byteCount = place.end.rawValue - place.base.rawValue
    #expect(
      mappings.insert(
        FrontendMapping(
          address: DMAAddress(place.base.rawValue + shift), byteCount: byteCount, guestAddress: place.base)))
    do {
      var disk = try BlockClient(frontend, queue: 0, place: place, shift: shift)
      for sector in 0..<9 { _ = try disk.read(sector: UInt64(sector), count: 512) }
    }
    let now = try figures()
    #expect(now["access_platform_accepted"] as? Bool == true)
    #expect(now["address_path"] as? String == "platform")
    #expect(now["memory_bytes"] as? Int == 8 << 20)
    let reachable = try #require(now["reachable_bytes"] as? UInt64)
    #expect(reachable > 0 && reachable <= byteCount)
    #expect(now["requests"] as? Int == 9)
    #expect(now["faults"] as? Int == 0)
    #expect(try #require(now["misses"] as? Int) > 0)
    let text = try words()
    for part in [
      "VIRTIO_F_ACCESS_PLATFORM: offered, accepted", "path         platform", "8.0 MiB of guest memory", "queue 0",
      "9 taken, 9 done",
    ] {
      #expect(text.contains(part), "\(text)")
    }
    #expect(text.split(separator: "\n").allSatisfy { $0.count <= 100 }, "\(text)")

    frontend.close()
    try waitUntil { try figures()["connected"] as? Bool == false }
    let after = try figures()
    #expect(after["reachable_bytes"] as? Int == 0)
    #expect(after["requests"] as? Int == 9)
    #expect(try words().contains("none now; the rest is about the last of 1"))
    try running.expectCleanEnd()
  }

  @Test("When the last front-end has gone nothing is said to be still to come, and one is not called several")
  func over() throws {
    let running = try folder.serve(with: "--num-queues", "1")
    let frontend = try Frontend.connect(to: folder.path("s.sock"))
    #expect(try frontend.ask(.getFeatures) != 0)
    #expect(try words().contains("not negotiated yet"))
    frontend.close()
    try waitUntil { try figures()["connected"] as? Bool == false }
    #expect(try !words().contains("yet"))
    let second = try folder.connect([.version1], sharing: 8 << 20)
    #expect(try words().contains("the device has 1 queue\n"))
    second.close()
    try waitUntil { try figures()["connected"] as? Bool == false }
    #expect(try !words().contains("yet"))
    try running.expectCleanEnd()
  }

  @Test("The answer tells the image, its size, how it is reached, and the socket")
  func facts() throws {
    let image = try folder.image()
    let running = try folder.serve(
      image, socket: "s.sock", "--read-only", "--engine", "sync", "--cache", "writethrough", "--logical-block-size",
      "4096")
    // Where lines are broken depends on the length of paths.
    let text = try words().split(whereSeparator: \.isWhitespace).joined(separator: " ")
    for part in [
      "1048576 bytes in blocks of 4096, a raw file,", "read-only",
      "cache writethrough, through the host's page cache, engine sync, lock",
    ] {
      #expect(text.contains(part), "\(text)")
    }
    let now = try figures()
    #expect(
      now["image"] as? String == image && now["image_bytes"] as? Int == 1 << 20 && now["block_size"] as? Int == 4096)
    #expect(now["read_only"] as? Bool == true && now["direct"] as? Bool == false && now["lock"] as? String == "always")
    #expect(now["cache"] as? String == "writethrough" && now["engine"] as? String == "sync")
    #expect(now["socket"] as? String == folder.path("s.sock"))
    try running.expectCleanEnd()
  }

  @Test("With a front-end that does not take the bit the answer says that all memory can be reached")
  func open() throws {
    let running = try folder.serve()
    let frontend = try folder.connect([.version1], sharing: 8 << 20)
    let now = try figures()
    #expect(now["address_path"] as? String == "physical")
    #expect(now["reachable_bytes"] as? Int == 8 << 20)
    let text = try words()
    #expect(text.contains("offered, not accepted"))
    #expect(text.contains("8.0 MiB now, 8.0 MiB at most (100.0 %), of 8.0 MiB"))
    frontend.close()
    try running.expectCleanEnd()
  }

  @Test(
    "--indirect decides about tables of descriptors, and --access-platform on about those of a disk where it does not; the answer says what came of it",
    arguments: [
      ([], true, true), (["--indirect", "off"], false, false), (["--access-platform", "on"], false, true),
      (["--access-platform", "on", "--indirect", "on"], true, true),
      (["--access-platform", "off", "--indirect", "auto"], true, true),
    ] as [([String], Bool, Bool)])
  func indirect(_ options: [String], _ disk: Bool, _ entropy: Bool) throws {
    for (device, isOffered) in [("blk", disk), ("rng", entropy)] {
      let image = device == "blk" ? ["--blk-file", try folder.image()] : []
      let running = try Command.Running(["serve", device, "--socket-path", folder.path("s.sock")] + image + options)
      try folder.waitUntilAnswered("s.sock", running)
      #expect(try figures()["indirect_offered"] as? Bool == isOffered)
      #expect(try #require(try figures()["offered_features"] as? [Int]).contains(28) == isOffered)
      #expect(try figures()["indirect_accepted"] as? Bool == false)
      let frontend = try Frontend.connect(to: folder.path("s.sock"), memory: FrontendMemory(byteCount: 1 << 20))
      try frontend.negotiate([.version1, .indirectDescriptors, .accessPlatform])
      try waitUntil { try figures()["indirect_accepted"] as? Bool == isOffered }
      #expect(try words().contains("split, indirect tables \(isOffered ? "accepted" : "not offered"), 0 running"))
      try running.expectCleanEnd()
    }
  }

  @Test("A front-end without an IOMMU is refused by --access-platform on, and the answer says so afterwards")
  func refused() throws {
    let running = try folder.serve(with: "--access-platform", "on")
    #expect(try words().contains("to be offered, and required"))
    let frontend = try Frontend.connect(to: folder.path("s.sock"))
    // Without acknowledgements, as QEMU sends it: the refusal is the end of the connection.
    _ = try? frontend.negotiate([.version1], protocolFeatures: [])
    #expect(frontend.waitUntilClosed(timeout: .seconds(10)))
    try waitUntil { try figures()["failed_sessions"] as? Int == 1 }
    #expect(try #require(try figures()["last_failure"] as? String).contains("insists on it"))
    #expect(try words().contains("1 connection ended by an error, the last one by: SET_FEATURES"))
    try running.expectCleanEnd()
  }

  /// Asks again until it is so, for ten seconds at most: a back-end gives no event when its front-end has gone.
  private func waitUntil(_ condition: () throws -> Bool) throws {
    if try !eventually(within: .seconds(10), condition) { Issue.record("it did not come to that") }
  }

  @Test(
    "Help is printed on standard output, status 0",
    arguments: [["--help"], ["serve", "--help"], ["serve", "blk", "--help"], ["explain", "--help"]])
  func help(_ words: [String]) throws {
    let result = try Command.Running(words).end(within: 30)
    #expect(result.status == 0)
    #expect(result.output.contains("OVERVIEW: "))
    #expect(result.errors == "")
  }
}
