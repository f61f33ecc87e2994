import Foundation
import Testing
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("The command, as typed", .serialized) struct ServeTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  /// One sentence on standard error, nothing on standard output, and nothing left at `socket`.
  func expectSentence(_ result: Command.Result, status: Int32, saying words: String, absent socket: String? = nil) {
    #expect(result.status == status)
    #expect(result.output == "")
    #expect(result.errors.hasPrefix("sluice: "))
    #expect(result.errors.split(separator: "\n").count == 1, "\(result.errors)")
    #expect(result.errors.contains(words), "\(result.errors)")
    if let socket { #expect(!FileManager.default.fileExists(atPath: socket)) }
  }

  /// `serve blk` with an image and a place that are these, or are not said.
  private func serve(_ image: String?, at place: String?, _ more: String...) throws -> Command.Result {
    let words = ["serve", "blk"] + (place.map { ["--socket-path", $0] } ?? [])
    return try Command.run(words + (image.map { ["--blk-file", $0] } ?? []) + more)
  }

  @Test("A mistyped option is answered with the nearest one, status 2")
  func mistyped() throws {
    let result = try Command.run(
      "serve", "blk", "--socket-pth", folder.path("s.sock"), "--blk-file", try folder.image())
    expectSentence(result, status: 2, saying: "--socket-path", absent: folder.path("s.sock"))
  }

  @Test("Without a place to serve the command says which options name one, status 2")
  func nowhere() throws {
    expectSentence(try serve(folder.image(), at: nil), status: 2, saying: "--socket-path")
    expectSentence(
      try serve(folder.image(), at: folder.path("s"), "--fd", "3"), status: 2, saying: "exclude",
      absent: folder.path("s"))
  }

  @Test("Without an image the command says which option names one, status 2")
  func noImage() throws {
    expectSentence(try serve(nil, at: folder.path("s")), status: 2, saying: "--blk-file", absent: folder.path("s"))
  }

  @Test("A missing image is named with a way to make one, status 1, and no socket is left behind")
  func missing() throws {
    let result = try serve(folder.path("none.img"), at: folder.path("s"))
    expectSentence(result, status: 1, saying: "there is no image", absent: folder.path("s"))
  }

  @Test("A directory is not an image, status 1")
  func directory() throws {
    let result = try serve(folder.url.path, at: folder.path("s"))
    expectSentence(result, status: 1, saying: "is a directory", absent: folder.path("s"))
  }

  @Test(
    "Options out of range are named as they are typed, status 2",
    arguments: [
      ["--num-queues", "-1"], ["--num-queues", "many"], ["--queue-size", "70000"], ["--queue-size", "-1"],
      ["--logical-block-size", "513"], ["--logical-block-size", "0"], ["--fd", "-1"],
      ["--num-queues", "0"], ["--num-queues", "257"], ["--queue-size", "1"], ["--logical-block-size", "1000"],
      ["--serial", "twenty-one characters"], ["--cache", "none"], ["--lock", "sometimes"],
      ["--access-platform", "maybe"], ["--fd", "x"],
      ["--indirect", "sometimes"], ["--idle-latency", "-1"], ["--idle-latency", "soon"],
    ])
  func range(_ option: [String]) throws {
    let words =
      ["serve", "blk", "--blk-file", try folder.image()]
      + (option[0] == "--fd" ? [] : ["--socket-path", folder.path("s")]) + option
    let result = try Command.Running(words).end(within: 30)
    expectSentence(result, status: 2, saying: option[0], absent: folder.path("s"))
  }

  @Test("An image without room for a block is refused with a way to give it a size, status 1", arguments: [0, 511])
  func empty(_ size: UInt64) throws {
    let result = try serve(folder.image(size: size), at: folder.path("s"), "--log-level", "error")
    expectSentence(result, status: 1, saying: "truncate -s", absent: folder.path("s"))
  }

  @Test("Over vfio-user, too, and an image that is not there; no socket is left behind")
  func overVfioUser() throws {
    let socket = folder.path("v")
    let first = try folder.file("first.img", [UInt8](repeating: 0, count: 1 << 20))
    for (image, words) in [(try folder.image(size: 0), "truncate -s"), (folder.path("none"), "there is no image")] {
      let command = ["serve", "nvme", "--blk-file", image, "--vfio-user", socket, "--log-level", "error"]
      expectSentence(
        try Command.Running(command).end(within: 30), status: 1, saying: words, absent: socket)
      // The same of the second namespace's.
      let second = ["serve", "nvme", "--blk-file", first, "--blk-file", image, "--vfio-user", socket]
      expectSentence(try Command.Running(second).end(within: 30), status: 1, saying: words, absent: socket)
    }
    for (option, value) in [("--num-queues", "65"), ("--queue-size", "1")] {
      let command = ["serve", "nvme", "--blk-file", first, "--vfio-user", socket, option, value]
      expectSentence(try Command.Running(command).end(within: 30), status: 2, saying: option, absent: socket)
    }
  }

  @Test("What is neither a file nor a block device is not an image, status 1")
  func device() throws {
    let result = try serve("/dev/null", at: folder.path("s"))
    expectSentence(result, status: 1, saying: "neither a file nor a block device", absent: folder.path("s"))
  }

  @Test(
    "A word that is no command is answered with those that are, status 2",
    arguments: [
      (["serv", "blk"], "`sluice serve`, `sluice explain`, `sluice check`, `sluice matrix` and `sluice machine`"),
      (["serve", "net"], "`sluice serve blk`, `sluice serve nvme` and"),
    ])
  func noCommand(_ words: [String], _ there: String) throws {
    expectSentence(try Command.Running(words).end(within: 30), status: 2, saying: there)
  }

  @Test(
    "What the parser cannot make sense of is answered with where the help is, status 2",
    arguments: [
      (["serve", "blk", "--once", "extra"], "sluice serve blk --help"), (["explain"], "sluice explain --help"),
      (["--versoin"], "sluice --help"),
    ])
  func nonsense(_ words: [String], _ place: String) throws {
    expectSentence(try Command.Running(words).end(within: 30), status: 2, saying: place)
  }

  @Test("A path that no socket can have is told apart from one whose directory is missing")
  func impossiblePath() throws {
    for (path, status, words) in [
      (folder.path(String(repeating: "x", count: 120)), 2, "107 bytes"), ("", 2, "--socket-path is empty"),
      (folder.path("none/s"), 1, "create it"), (try folder.image() + "/s", 1, "create it"),
    ] {
      expectSentence(try Command.run("serve", "rng", "--socket-path", path), status: Int32(status), saying: words)
    }
  }

  @Test("A second server of the same image is refused while the first goes on, status 1")
  func locked() throws {
    let image = try folder.image()
    let first = try folder.serve(image)
    let second = try serve(image, at: folder.path("t.sock"))
    expectSentence(second, status: 1, saying: "in use by another process", absent: folder.path("t.sock"))
    #expect(try Command.run("explain", folder.path("s.sock")).status == 0)
    try first.expectCleanEnd()
  }

  @Test("With --lock running a second server of the image is there beside the first, as a live migration needs it")
  func handOver() throws {
    let image = try folder.image()
    let first = try folder.serve(image, "--lock", "running")
    let second = try folder.serve(image, socket: "t.sock", "--lock", "running")
    for one in [first, second] { try one.expectCleanEnd() }
  }

  @Test("A busy socket is refused, and its server goes on; a stale one is replaced")
  func busy() throws {
    let image = try folder.image()
    let first = try folder.serve(image)
    let second = try serve(folder.image("other.img"), at: folder.path("s.sock"))
    expectSentence(second, status: 1, saying: "is busy")
    #expect(try Command.run("explain", folder.path("s.sock")).status == 0)
    // Killed, it leaves its socket's file behind.
    kill(first.process.processIdentifier, SIGKILL)
    _ = try first.end(within: 10)
    #expect(FileManager.default.fileExists(atPath: folder.path("s.sock")))
    let third = try folder.serve(image)
    try third.expectCleanEnd()
  }

  @Test("A file that is no socket is not touched, status 1")
  func occupied() throws {
    let file = try folder.image("precious")
    let result = try serve(folder.image(), at: file)
    expectSentence(result, status: 1, saying: "is not a socket")
    #expect(FileManager.default.fileExists(atPath: file))
  }

  @Test(
    "--print-capabilities prints JSON and ignores what else is typed", arguments: [("blk", "block"), ("rng", "rng")])
  func capabilities(_ device: String, _ type: String) throws {
    let result = try Command.run(
      "serve", device, "--print-capabilities", "--socket-path", "/nowhere/at/all", "--queue-size", "x",
      "--no-such-option")
    #expect(result.status == 0)
    let json = try result.object
    #expect(json["type"] as? String == type)
    #expect(json["features"] as? [String] == (device == "blk" ? ["read-only", "blk-file"] : []))
  }

  @Test("A listening socket that was inherited is served, named by --fd or by LISTEN_FDS", arguments: [true, false])
  func inherited(_ named: Bool) throws {
    // perl is part of every Debian: it opens descriptor 3, and becomes the command.
    let open =
      #"$^F = 9; use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un(shift)) && listen(S, 5) || die; "#
      + #"fileno(S) == 3 || die "not 3"; $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1; exec @ARGV"#
    let running = try Command.Running(
      ["serve", "rng"] + (named ? ["--fd", "3"] : []), through: ["/usr/bin/perl", "-e", open, folder.path("s.sock")])
    try folder.waitUntilAnswered("s.sock", running)
    try running.expectCleanEnd()
    // The process that made the socket keeps it.
    #expect(FileManager.default.fileExists(atPath: folder.path("s.sock")))
  }

  @Test(
    "A descriptor that is no socket is refused, status 2, standard error among them: the sentence still arrives there")
  func noSocket() throws {
    for number in ["0", "1", "2", "77"] {
      expectSentence(try Command.run("serve", "rng", "--fd", number), status: 2, saying: "--fd \(number)")
    }
  }

  @Test("A socket that neither listens nor is connected is refused, status 2")
  func unconnected() throws {
    let open =
      #"$^F = 9; use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) || die; fileno(S) == 3 || die "not 3"; exec @ARGV"#
    let result = try Command.Running(["serve", "rng", "--fd", "3"], through: ["/usr/bin/perl", "-e", open]).end(
      within: 10)
    expectSentence(result, status: 2, saying: "--fd 3")
  }

  @Test("A connected socket that was inherited is served until its front-end goes, status 0")
  func connected() throws {
    // The other end asks for the features, waits for all of the answer, and goes.
    let open =
      #"$^F = 9; use Socket; socketpair(S, T, PF_UNIX, SOCK_STREAM, 0) || die; fileno(S) == 3 || die "not 3"; "#
      + #"if (!fork) { close S; syswrite T, pack("L3", 1, 1, 0); my ($all, $some) = (""); "#
      + #"while (length $all < 20 && sysread T, $some, 20) { $all .= $some } exit(length $all != 20) } close T; exec @ARGV"#
    let result = try Command.Running(["serve", "rng", "--fd", "3"], through: ["/usr/bin/perl", "-e", open]).end(
      within: 10)
    #expect(result.status == 0)
    #expect(result.errors.contains("front-end gone"), "\(result.errors)")
  }

  @Test(
    "With --once the command ends when its first front-end has gone, status 0, and takes the socket along; questions do not count"
  )
  func once() throws {
    let running = try folder.serve(with: "--once")
    let frontend = try folder.connect([.version1])
    frontend.close()
    #expect(try running.end(within: 10).status == 0)
    #expect(!FileManager.default.fileExists(atPath: folder.path("s.sock")))
  }
}
