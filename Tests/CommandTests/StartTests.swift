import Foundation
import Testing
import VhostUser
import VhostUserFrontend
import Virtio
import VirtioTestKit

/// What can go wrong with a guest is found out before there is one.
@Suite("The command finds out at the start", .serialized, .timeLimit(.minutes(10))) struct StartTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private func refusal(_ words: [String], through launcher: [String] = []) throws -> String {
    let result = try Command.Running(
      ["serve", "blk", "--socket-path", folder.path("s"), "--blk-file", try folder.image()] + words, through: launcher
    ).end(within: 20)
    #expect(result.status == 1 && result.output == "")
    #expect(result.errors.hasPrefix("sluice: ") && result.errors.split(separator: "\n").count == 1, "\(result.errors)")
    #expect(!FileManager.default.fileExists(atPath: folder.path("s")))
    return result.errors
  }

  @Test("An image of another format is refused with what to do, and left as it was; insisting serves it")
  func format() throws {
    let image = try folder.image()
    let head = Data("QFI".utf8) + [0xfb, 0, 0, 0, 3]
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: image))
    try file.write(contentsOf: head)
    try file.close()
    let before = try Data(contentsOf: URL(fileURLWithPath: image))
    let result = try Command.run("serve", "blk", "--socket-path", folder.path("s.sock"), "--blk-file", image)
    #expect(result.status == 1 && result.errors.split(separator: "\n").count == 1)
    for part in ["begins like a qcow2 image", "qemu-img convert", "--image-format raw"] {
      #expect(result.errors.contains(part), "\(result.errors)")
    }
    #expect(!FileManager.default.fileExists(atPath: folder.path("s.sock")))
    #expect(try Data(contentsOf: URL(fileURLWithPath: image)) == before)
    let running = try folder.serve(image, socket: "s.sock", "--image-format", "raw")
    try running.expectCleanEnd()
  }

  @Test(
    "Locks that cannot be had are named, with the option that does without, however the image is to be locked",
    .enabled(if: Refusal.isThere, "SKIPPED: no way to refuse locks on this architecture"),
    arguments: [ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL], ["always", "running"])
  func locks(_ error: Int32, _ lock: String) throws {
    let sentence = try refusal(["--lock", lock], through: Refusal.locks(error))
    #expect(sentence.contains("the lock of ") && sentence.contains("--lock off"), "\(sentence)")
  }

  @Test(
    "With --lock off an image is served where there are no locks, and where another process holds one",
    .enabled(if: Refusal.isThere, "SKIPPED: no way to refuse locks on this architecture"))
  func unlocked() throws {
    let image = try folder.image()
    let words = ["serve", "blk", "--blk-file", image, "--lock", "off", "--socket-path"]
    let first = try folder.serve(image)
    let second = try Command.Running(words + [folder.path("t.sock")], through: Refusal.locks(ENOLCK))
    try folder.waitUntilAnswered("t.sock", second)
    for one in [first, second] { try one.expectCleanEnd() }
  }

  @Test(
    "--engine uring that cannot be is refused by name; without the option requests are done one by one",
    .enabled(if: Refusal.isThere, "SKIPPED: no way to refuse io_uring on this architecture"),
    arguments: [EPERM, ENOSYS])
  func ring(_ error: Int32) throws {
    #expect(
      try refusal(["--engine", "uring"], through: Refusal.ring(error)).contains(
        "--engine uring: io_uring is not available"))
    let running = try folder.serve(through: Refusal.ring(error))
    // An image in memory is done so in any case, and there is nothing to say.
    let words = try Command.run("explain", folder.path("s.sock")).output
    #expect(words.contains("engine sync"))
    running.terminate()
    let lines = try running.end(within: 10).errors.split(separator: "\n").filter { $0.contains("one after the other") }
    #expect(lines.count <= 1)
  }

  @Test("As many queues are offered as QEMU has processors, and only those that are used cost a thread")
  func queues() throws {
    let running = try folder.serve()
    let frontend = try folder.connect([.version1, .blockMultiqueue])
    #expect(try frontend.ask(.getQueueCount) == 256)
    let threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(running.process.processIdentifier)/task")
    #expect(threads.count < 10)
    frontend.close()
    try running.expectCleanEnd()
  }

  @Test("A resize is in the log, with both sizes")
  func resized() throws {
    let image = try folder.image()
    let running = try folder.serve(image)
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: image))
    try file.truncate(atOffset: 2 << 20)
    try running.waitUntilSaid("the disk has 2097152 bytes now, and had 1048576")
    #expect(try Command.run("explain", folder.path("s.sock")).output.contains("2097152 bytes in blocks of 512"))
    try running.expectCleanEnd()
  }
}
