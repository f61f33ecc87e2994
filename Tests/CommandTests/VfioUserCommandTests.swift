import Foundation
import HostIO
import Testing
import VirtioTestKit

@Suite("The command over vfio-user, as typed", .serialized) struct VfioUserCommandTests {
  private let folder: TemporaryFolder
  private var socket: String { folder.path("v.sock") }

  init() throws { folder = try TemporaryFolder() }

  /// `serve` of a device at the place, and what else is said.
  private func words(_ device: String, _ more: [String] = []) throws -> [String] {
    ["serve", device, "--vfio-user", socket] + (device == "rng" ? [] : ["--blk-file", try folder.image()]) + more
  }

  @Test(
    "Each device answers explain in words and in JSON, ends cleanly, and takes its socket along",
    arguments: ["blk", "rng", "nvme"])
  func explains(_ device: String) throws {
    let running = try Command.Running(words(device))
    try folder.waitUntilAnswered("v.sock", running)
    let text = try Command.run("explain", socket).output
    for part in ["(vfio-user)", "client       none yet", "has mapped nothing", "0 DMA_MAP", "MSI-X vector"] {
      #expect(text.contains(part), "\(text)")
    }
    #expect(text.contains("it is not virtio") == (device == "nvme"), "\(text)")
    #expect(text.split(separator: "\n").allSatisfy { $0.count <= 100 }, "\(text)")
    let object = try Command.run("explain", "--json", socket).object
    #expect(object["protocol"] as? String == "vfio-user" && object["mapped_bytes"] as? Int == 0)
    #expect(object["device"] as? String == (device == "nvme" ? "nvme" : "virtio-\(device)"))
    #expect(object["access_platform_offered"] as? Bool == (device == "nvme" ? nil : true))
    kill(running.process.processIdentifier, SIGUSR1)
    try running.waitUntilSaid("has mapped nothing")
    try running.expectCleanEnd()
    #expect(!FileManager.default.fileExists(atPath: socket))
  }

  @Test(
    "What the device offers and which interfaces it has follow from --iommu-platform, by either name, and --disable-legacy",
    arguments: [
      ([], true, "modern"), (["--iommu-platform", "on"], true, "modern"),
      (["--access-platform", "off"], false, "transitional"),
      (["--iommu-platform", "off", "--disable-legacy", "on"], false, "modern"),
      (["--disable-legacy", "off"], false, "transitional"), (["--disable-legacy", "on"], true, "modern"),
    ] as [([String], Bool, String)])
  func offers(_ options: [String], _ isOffered: Bool, _ interface: String) throws {
    let running = try Command.Running(words("rng", options))
    try folder.waitUntilAnswered("v.sock", running)
    let object = try Command.run("explain", "--json", socket).object
    #expect(object["access_platform_offered"] as? Bool == isOffered)
    #expect(object["interface"] as? String == interface)
    try running.expectCleanEnd()
  }

  @Test(
    "Options of the other protocol, and those that exclude each other, are refused by name, status 2",
    arguments: [
      (["--vfio-user", "V", "--socket-path", "V"], "--socket-path and --vfio-user exclude"),
      (["--vfio-user", "V", "--fd", "3"], "--vfio-user and --fd exclude"),
      (["--vfio-user", "V", "--translations", "keep"], "--translations is for vhost-user"),
      (["--vfio-user", "V", "--idle-latency", "off"], "--idle-latency is for vhost-user"),
      (["--vfio-user", "V", "--protocol", "vhost-user"], "--vfio-user and --protocol vhost-user exclude"),
      (["--vfio-user", "V", "--iommu-platform", "on", "--disable-legacy", "off"], "--disable-legacy off exclude"),
      (["--socket-path", "V", "--protocol", "vfio-user"], "--socket-path is for vhost-user"),
      (["--socket-path", "V", "--disable-legacy", "on"], "--disable-legacy is for vfio-user"),
      (["--socket-path", "V", "--doorbells", "shared"], "--doorbells is for vfio-user"),
      (["--vfio-user", ""], "--vfio-user is empty"), (["--protocol", "vfio-user"], "--vfio-user PATH"),
      (["--vfio-user", "V", "--disable-legacy", "perhaps"], "--disable-legacy"), (["--protocol", "x"], "--protocol"),
    ] as [([String], String)])
  func exclusions(_ options: [String], _ sentence: String) throws {
    let result = try Command.run(["serve", "rng"] + options.map { $0 == "V" ? socket : $0 })
    #expect(result.status == 2 && result.errors.contains(sentence), "\(result.errors)")
    #expect(result.errors.split(separator: "\n").count == 1 && !FileManager.default.fileExists(atPath: socket))
  }

  @Test(
    "NVMe is told apart from virtio: what it does not have is refused by name, and what it has in any case is accepted",
    arguments: [
      (["--socket-path", "V"], "vfio-user only"), (["--vfio-user", "V", "--protocol", "vhost-user"], "vfio-user only"),
      (["--vfio-user", "V", "--iommu-platform", "on"], "--iommu-platform is for virtio"),
      (["--vfio-user", "V", "--access-platform", "on"], "--access-platform is for virtio"),
      (["--vfio-user", "V", "--disable-legacy", "on"], "--disable-legacy is for virtio"),
      (["--protocol", "vfio-user"], "no socket; give --vfio-user PATH"),
      (["--vfio-user", "V", "--blk-file", "I"], "is given twice"),
    ] as [([String], String)])
  func ofNVMe(_ options: [String], _ sentence: String) throws {
    let image = try folder.image()
    let words = options.map { $0 == "V" ? socket : $0 == "I" ? image : $0 }
    let result = try Command.run(["serve", "nvme", "--blk-file", image] + words)
    #expect(result.status == 2 && result.errors.contains(sentence), "\(result.errors)")
    #expect(result.errors.split(separator: "\n").count == 1 && !FileManager.default.fileExists(atPath: socket))
  }

  @Test("A virtio disk has one image: a second one is refused, and not taken in place of the first")
  func secondImage() throws {
    let image = try folder.image()
    let result = try Command.run(words("blk", ["--image", image]))
    #expect(result.status == 2 && result.errors.contains("--blk-file is given 2 times"), "\(result.errors)")
  }

  @Test("What an option of two names excludes is said of the name that was typed", arguments: ["iommu", "access"])
  func typedName(_ name: String) throws {
    let result = try Command.run(words("rng", ["--\(name)-platform", "on", "--disable-legacy", "off"]))
    #expect(result.status == 2 && result.errors.contains("--\(name)-platform on and"), "\(result.errors)")
  }

  @Test("The namespaces of an NVMe controller are all in the answer, with their blocks, cache and engine")
  func namespaces() throws {
    let second = try folder.file("second.img", [UInt8](repeating: 0, count: 1 << 20))
    let running = try Command.Running(words("nvme", ["--blk-file", second, "--engine", "sync"]))
    try folder.waitUntilAnswered("v.sock", running)
    let text = try Command.run("explain", socket).output
    #expect(text.hasPrefix("nvme\n") && text.contains("namespace 2"), "\(text)")
    let object = try Command.run("explain", "--json", socket).object
    let all = try #require(object["namespaces"] as? [[String: Any]])
    #expect(all.map { $0["namespace"] as? Int } == [1, 2] && all[1]["image"] as? String == second)
    #expect(all.allSatisfy { $0["engine"] as? String == "sync" && $0["cache"] is String })
    #expect(object["block_size"] as? Int == 512)
    try running.expectCleanEnd()
  }

  @Test("What cannot be served leaves no socket behind, and never had one", arguments: ["blk", "nvme"])
  func neverThere(_ device: String) throws {
    // Taken by a listener: had the socket come first, this would be the complaint.
    let taken = try UnixListener(path: socket)
    let result = try Command.run("serve", device, "--blk-file", folder.path("none"), "--vfio-user", socket)
    #expect(result.status == 1 && result.errors.contains("there is no image"), "\(result.errors)")
    taken.removeFile()
  }

  @Test(
    "A listening socket that was inherited is served over vfio-user where --protocol says so", arguments: [true, false])
  func inherited(_ named: Bool) throws {
    let open =
      #"$^F = 9; use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un(shift)) && listen(S, 5) || die; "#
      + #"fileno(S) == 3 || die "not 3"; $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1; exec @ARGV"#
    let running = try Command.Running(
      ["serve", "rng", "--protocol", "vfio-user"] + (named ? ["--fd", "3"] : []),
      through: ["/usr/bin/perl", "-e", open, socket])
    try folder.waitUntilAnswered("v.sock", running)
    #expect(try Command.run("explain", "--json", socket).object["protocol"] as? String == "vfio-user")
    try running.expectCleanEnd()
  }
}
