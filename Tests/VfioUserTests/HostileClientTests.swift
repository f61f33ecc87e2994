import DMA
import HostIO
import IOMMUInterface
import NVMe
import PCI
import SocketMessages
import Storage
import Testing
import VirtioTestKit

@testable import VfioUser

@Suite("A hostile client of vfio-user", .timeLimit(.minutes(10))) struct HostileClientTests {
  /// What the client maps for the device; the rest of its memory nobody may touch.
  private static let window: UInt64 = 1 << 20

  private func map(
    _ client: Client, _ address: UInt64, _ size: UInt64, offset: UInt64 = 0, file: Int32
  ) throws {
    try client.command(
      .mapDMA, MapRequest(flags: 3, offset: offset, address: address, size: size).encoded, descriptors: [file])
  }

  private func errno(_ body: () throws -> Void) -> Int32? {
    do {
      try body()
      return nil
    } catch {
      return (error as? Client.Failed)?.errno ?? -1
    }
  }

  /// The first byte behind the window that is not zero.
  private func spoiled(_ rig: Rig) -> UInt64? {
    var bytes = [UInt8](repeating: 0, count: 1 << 16)
    for at in stride(from: Self.window, to: UInt64(Rig.memoryBytes), by: bytes.count) {
      var span = bytes.mutableSpan
      _ = rig.memory.copy(from: GuestAddress(at), into: &span)
      if let place = bytes.firstIndex(where: { $0 != 0 }) { return at + UInt64(place) }
    }
    return nil
  }

  /// An enabled controller whose admin queues are in the window's first pages, which are full of random commands.
  private func enable(_ client: Client, _ rig: Rig, _ random: inout SeededGenerator) {
    let commands = (0..<2 * 4096).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    _ = rig.memory.copy(commands.span, to: GuestAddress(0x1000))
    client.writeConfiguration(at: 4, width: 2, 6)
    client.writeBAR(0, at: 0x24, width: 4, 0x003f_003f)
    client.writeBAR(0, at: 0x28, width: 4, 0x1000)
    client.writeBAR(0, at: 0x2c, width: 4, 0)
    client.writeBAR(0, at: 0x30, width: 4, 0x8000)
    client.writeBAR(0, at: 0x34, width: 4, 0)
    client.writeBAR(0, at: 0x14, width: 4, 0x0046_0001)
  }

  @Test("Random writes to configuration space, BARs and doorbells reach nothing that is not mapped, and a reset cures")
  func scribbles() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    var random = SeededGenerator(1)
    for _ in 0..<8 {
      try map(client, 0, Self.window, file: rig.file.descriptor.rawValue)
      enable(client, rig, &random)
      for _ in 0..<1500 {
        let value = UInt32(truncatingIfNeeded: random.next())
        let width = 1 << Int(random.next() % 3)
        switch random.next() % 4 {
        case 0: client.writeConfiguration(at: Int(random.next() % 256) & ~(width - 1), width: width, value)
        case 1: client.writeBAR(0, at: random.next() % 0x1000 & ~UInt64(width - 1), width: width, value)
        case 2: client.writeBAR(0, at: 0x1000 + 4 * (random.next() % 16), width: 4, value % 64)
        default: client.writeBAR(4, at: random.next() % 0x1000 & ~UInt64(width - 1), width: width, value)
        }
      }
      try client.command(.reset)
      #expect(client.readConfiguration(at: 0, width: 2) == 0x1234)
      try client.command(.unmapDMA, UnmapRequest(flags: UnmapRequest.everything, address: 0, size: 0).encoded)
    }
    #expect(spoiled(rig) == nil)
  }

  @Test("A client unmaps under the device's hands, at any time: what was acknowledged stays as it is")
  func unmaps() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    var random = SeededGenerator(2)
    let file = rig.file.descriptor.rawValue
    for round in 0..<64 {
      try map(client, 0, Self.window, file: file)
      enable(client, rig, &random)
      client.writeBAR(0, at: 0x1000, width: 4, UInt32(truncatingIfNeeded: random.next() % 64))
      try client.command(.unmapDMA, UnmapRequest(address: 0, size: Self.window).encoded)
      let poison = [UInt8](repeating: 0xa5, count: Int(Self.window))
      _ = rig.memory.copy(poison.span, to: GuestAddress(0))
      if round % 8 == 0 { try client.command(.reset) }
      var back = [UInt8](repeating: 0, count: Int(Self.window))
      var span = back.mutableSpan
      _ = rig.memory.copy(from: GuestAddress(0), into: &span)
      #expect(back == poison)
    }
    #expect(spoiled(rig) == nil)
  }

  @Test("Clients that close while the device works, or in the middle of a message, leave a server for the next one")
  func closes() throws {
    let rig = try Rig()
    var random = SeededGenerator(3)
    for round in 0..<32 {
      do {
        let client = try Client(path: rig.path)
        try map(client, 0, Self.window, file: rig.file.descriptor.rawValue)
        enable(client, rig, &random)
        client.writeBAR(0, at: 0x1000, width: 4, UInt32(truncatingIfNeeded: random.next() % 64))
        if round % 2 == 0 {
          // A header that promises more than comes.
          _ = try client.send(VfioCommand.writeRegion.rawValue, [1, 2, 3], claiming: 1 << 20)
        }
      }
    }
    let last = try Client(path: rig.path)
    try last.command(.reset)
    #expect(last.readConfiguration(at: 0, width: 2) == 0x1234)
    #expect(spoiled(rig) == nil)
  }

  @Test("65 535 mappings are taken, one more is not, and all go with one command")
  func manyMaps() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    let file = rig.file.descriptor.rawValue
    let most = UInt64(ClientMemory.maxMappings)
    for first in stride(from: 0, to: most, by: 51) {
      let ids = try (first..<min(first + 51, most)).map { n in
        try client.send(
          VfioCommand.mapDMA.rawValue,
          MapRequest(flags: 3, offset: n % 4096 * 4096, address: n << 13, size: 4096).encoded, descriptors: [file])
      }
      for id in ids { _ = try client.reply(to: id) }
    }
    #expect(errno { try map(client, 1 << 50, 4096, file: file) } == Errno.noSpace.rawValue)
    try client.command(.unmapDMA, UnmapRequest(address: 0, size: 1 << 60).encoded)
    try map(client, 0, Self.window, file: file)
  }

  @Test("Mappings are of 64 files at most, and their files are forgotten with the client")
  func manyFiles() throws {
    let rig = try Rig()
    for _ in 0..<2 {
      let client = try Client(path: rig.path)
      for n in 0..<UInt64(ClientMemory.maxFiles) {
        let file = try MemoryFile(name: "one of many", size: 4096)
        try map(client, n << 12, 4096, file: file.descriptor.rawValue)
      }
      let more = try MemoryFile(name: "one too many", size: 4096)
      #expect(errno { try map(client, 1 << 40, 4096, file: more.descriptor.rawValue) } == Errno.noSpace.rawValue)
    }
  }

  @Test("A message of more than a megabyte, or with more than 32 descriptors, ends the connection")
  func tooMuch() throws {
    let rig = try Rig()
    let large = try Client(path: rig.path)
    _ = try large.send(VfioCommand.writeRegion.rawValue, [], claiming: UInt32(VfioHeader.transferLimit + 8192))
    #expect(large.isGivenUp)
    let many = try Client(path: rig.path)
    let file = rig.file.descriptor.rawValue
    _ = try many.send(
      VfioCommand.getInfo.rawValue, DeviceInfo().encoded, descriptors: [Int32](repeating: file, count: 33))
    #expect(many.isGivenUp)
    let next = try Client(path: rig.path)
    #expect(next.readConfiguration(at: 0, width: 2) == 0x1234)
  }

  @Test("A client whose connection the server gives up sees that at once, whoever else holds the socket")
  func givenUp() throws {
    let folder = try TemporaryFolder()
    let image = try folder.file("disk.img", [UInt8](repeating: 0, count: 1 << 16))
    let (ours, theirs) = try UnixSocket.pair()
    let server = try VfioUserServer(on: .connected(theirs), log: .silent) { master in
      try NVMeController(NVMeOptions(DiskOptions(path: image)), on: master)
    }
    let thread = try WorkerThread(name: "vfio-user") { try? server.run() }
    try ours.send([UInt8](repeating: 0xff, count: 64).span)
    #expect(try ours.waitReadable(timeout: .seconds(20)))
    thread.join()
    #expect(ours.isHungUp)
  }
}
