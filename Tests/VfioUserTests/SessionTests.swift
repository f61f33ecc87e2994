import DMA
import HostIO
import IOMMUInterface
import SocketMessages
import Testing
import VirtioTestKit

@testable import VfioUser

@Suite("A session of vfio-user", .timeLimit(.minutes(10))) struct SessionTests {
  private func map(
    _ client: Client, _ address: UInt64, _ size: UInt64, offset: UInt64 = 0, flags: UInt32 = 3, file: Int32?
  ) throws {
    let request = MapRequest(flags: flags, offset: offset, address: address, size: size)
    try client.command(.mapDMA, request.encoded, descriptors: file.map { [$0] } ?? [])
  }

  private func errno(_ body: () throws -> Void) -> Int32? {
    do {
      try body()
      return nil
    } catch {
      return (error as? Client.Failed)?.errno ?? -1
    }
  }

  @Test("A mapping that overlaps another, is no whole pages, or outgrows its file is refused, and nothing changes")
  func refused() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    let file = rig.file.descriptor.rawValue
    let bytes = UInt64(Rig.memoryBytes)
    try map(client, 1 << 32, 0x4000, file: file)
    #expect(errno { try map(client, (1 << 32) + 0x3000, 0x2000, file: file) } == Errno.fileExists.rawValue)
    #expect(errno { try map(client, (1 << 32) + 0x3000, 0x2000, file: nil) } == Errno.fileExists.rawValue)
    for (address, size, offset) in [
      (1 << 33, 0, 0), (1 << 33, 0x1001, 0), ((1 << 33) + 1, 0x1000, 0), (.max - 0xfff, 0x2000, 0),
      (1 << 33, 0x1000, 0x800), (1 << 33, 0x1000, bytes), (1 << 33, bytes + 0x1000, 0), (1 << 33, 0x1000, .max - 0xfff),
    ] as [(UInt64, UInt64, UInt64)] {
      let got = errno { try map(client, address, size, offset: offset, file: file) }
      #expect(got == Errno.invalidArgument.rawValue, "\(size) bytes at \(address) from \(offset)")
    }
    #expect(errno { try map(client, 1 << 33, 0x1000, flags: 1 << 7, file: file) } == Errno.invalidArgument.rawValue)
    #expect(
      errno { try map(client, 1 << 33, 0x1000, flags: MapRequest.byMapping, file: nil) }
        == Errno.invalidArgument.rawValue)
    // What was refused is free.
    try map(client, 1 << 33, bytes, file: file)
  }

  @Test("An unmap takes what lies inside its range, and succeeds where nothing is; a part of a mapping does not go")
  func unmaps() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    for n in 0..<4 as Range<UInt64> {
      try map(client, (1 << 32) + n * 0x1000, 0x1000, file: n % 2 == 0 ? rig.file.descriptor.rawValue : nil)
    }
    func unmap(_ address: UInt64, _ size: UInt64, flags: UInt32 = 0) throws {
      let request = UnmapRequest(flags: flags, address: address, size: size)
      let back = try UnmapRequest(decoding: client.command(.unmapDMA, request.encoded), of: "DMA_UNMAP")
      #expect(back == request)
    }
    // As QEMU's AMD-Vi does it: pieces of powers of two, over everything.
    for bit in 12..<63 { try unmap(1 << UInt64(bit), 1 << UInt64(bit)) }
    for n in 0..<4 as Range<UInt64> {
      try map(client, (1 << 32) + n * 0x1000, 0x1000, file: rig.file.descriptor.rawValue)
    }
    try map(client, 1 << 40, 0x4000, file: rig.file.descriptor.rawValue)
    #expect(errno { try unmap((1 << 40) + 0x1000, 0x1000) } == Errno.invalidArgument.rawValue)
    #expect(errno { try unmap(1 << 40, 0) } == Errno.invalidArgument.rawValue)
    #expect(errno { try unmap(0, 0, flags: UnmapRequest.getDirtyBitmap) } == Errno.notSupported.rawValue)
    try unmap(0, 0, flags: UnmapRequest.everything)
    try map(client, 1 << 40, 0x4000, file: rig.file.descriptor.rawValue)
  }

  @Test(
    "A client that breaks the protocol is told so, or goes, and the next one is served",
    arguments: [
      // A size below the header's, a reply to nothing, a command before VERSION.
      [1, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [1, 0, 1, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
      [1, 0, 13, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [UInt8](repeating: 0xff, count: 64), [1, 0, 1],
    ] as [[UInt8]])
  func breaksIt(_ bytes: [UInt8]) throws {
    let rig = try Rig()
    do {
      let socket = try UnixSocket.connect(to: rig.path)
      try socket.send(bytes.span)
    }
    let client = try Client(path: rig.path)
    #expect(client.readConfiguration(at: 0, width: 2) == 0x1234)
  }

  @Test("Commands that are not there, and those for what this server does not offer, are refused by their numbers")
  func unknown() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    for command in [0, 14, 19, 0xffff] as [UInt16] {
      #expect(errno { _ = try client.reply(to: client.send(command, [])) } == Errno.noFunction.rawValue)
    }
    for command in [.feature, .readMigrationData, .writeMigrationData, .getRegionDescriptors, .readDMA] as [VfioCommand]
    {
      #expect(errno { try client.command(command, [0, 0]) } == Errno.notSupported.rawValue)
    }
    // A command with a payload that is too short or too long.
    for command in [.mapDMA, .unmapDMA, .getInfo, .getRegionInfo, .readRegion, .writeRegion, .setInterrupts]
      as [VfioCommand]
    {
      #expect(errno { try client.command(command, [1, 2, 3]) } == Errno.invalidArgument.rawValue)
      let long = [UInt8](repeating: 0xff, count: 200)
      #expect(errno { try client.command(command, long) } == Errno.invalidArgument.rawValue)
    }
    #expect(client.readConfiguration(at: 0, width: 2) == 0x1234)
  }

  @Test("Regions have the sizes of the function's BARs, and an access past the end is refused")
  func regions() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    var sizes: [UInt64] = []
    for index in 0..<9 as Range<UInt32> {
      let info = try RegionInfo(
        decoding: client.command(.getRegionInfo, RegionInfo(index: index).encoded), of: "REGION_INFO")
      sizes.append(info.size)
    }
    #expect(sizes[0] >= 0x2000 && sizes[4] > 0 && sizes[7] == 256 && sizes[8] == 0)
    #expect(
      errno { try client.command(.getRegionInfo, RegionInfo(index: 9).encoded) } == Errno.invalidArgument.rawValue)
    for (offset, count) in [(sizes[0], 1), (sizes[0] - 1, 2), (.max, 8), (0, 1 << 21)] as [(UInt64, UInt32)] {
      let access = RegionAccess(offset: offset, region: 0, count: count)
      #expect(errno { try client.command(.readRegion, access.encoded) } == Errno.invalidArgument.rawValue)
    }
    // Several writes in one message.
    let writes = UInt64(1).payload + RegionAccess(offset: 0x24, region: 0, count: 4).encoded + [3, 0, 3, 0, 0, 0, 0, 0]
    #expect(try client.command(.writeRegions, writes) == UInt64(1).payload)
    #expect(client.readBAR(0, at: 0x24, width: 4) == 0x0003_0003)
  }

  @Test("An interrupt's eventfd is signalled by hand, and taken away; what makes no sense is refused")
  func interrupts() throws {
    let rig = try Rig()
    let client = try Client(path: rig.path)
    let event = try EventFD()
    func set(_ flags: UInt32, _ start: UInt32, _ count: UInt32, _ descriptors: [Int32] = []) throws {
      let request = SetInterrupts(flags: flags, index: VfioInterrupt.msix, start: start, count: count)
      try client.command(.setInterrupts, request.encoded, descriptors: descriptors)
    }
    try set(SetInterrupts.dataEventfd | SetInterrupts.trigger, 1, 1, [event.rawValue])
    try set(SetInterrupts.dataNone | SetInterrupts.trigger, 1, 1)
    #expect(try event.wait(timeout: .seconds(10)))
    _ = try event.drain()
    try set(SetInterrupts.dataNone | SetInterrupts.trigger, 0, 0)
    try set(SetInterrupts.dataNone | SetInterrupts.trigger, 1, 1)
    #expect(try !event.wait(timeout: .zero))
    for (flags, start, count) in [
      (0, 0, 1), (SetInterrupts.dataNone, 0, 1), (SetInterrupts.dataNone | SetInterrupts.trigger, 0, .max),
      (SetInterrupts.dataBool | SetInterrupts.trigger, 0, 1), (SetInterrupts.dataEventfd | SetInterrupts.mask, 0, 1),
    ] as [(UInt32, UInt32, UInt32)] {
      #expect(errno { try set(flags, start, count) } == Errno.invalidArgument.rawValue)
    }
  }

  @Test("When a client goes its memory cannot be reached any more, and the device's state stays")
  func goes() throws {
    let rig = try Rig()
    do {
      let client = try Client(path: rig.path)
      try map(client, 0, 0x10000, file: rig.file.descriptor.rawValue)
      client.writeBAR(0, at: 0x24, width: 4, 0x0007_0007)
      #expect(client.readBAR(0, at: 0x24, width: 4) == 0x0007_0007)
    }
    let next = try Client(path: rig.path)
    #expect(next.readBAR(0, at: 0x24, width: 4) == 0x0007_0007)
    try map(next, 0, 0x10000, file: rig.file.descriptor.rawValue)
    try next.command(.reset)
    #expect(next.readBAR(0, at: 0x24, width: 4) == 0)
  }
}
