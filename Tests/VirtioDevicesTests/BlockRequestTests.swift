import DMA
import HostIO
import Testing
import Virtio
import VirtioDevices

@Suite("virtio-blk requests") struct BlockRequestTests {
  static let engines: [BlockEngine] = [.synchronous]

  func rig(_ file: ScratchFile, _ engine: BlockEngine, features: Features? = nil, _ change: (inout BlockOptions) -> Void = { _ in }) throws -> DeviceRig {
    var options = BlockOptions(path: file.path)
    options.engine = engine
    options.sizePollInterval = nil
    change(&options)
    let device = try BlockDevice(options)
    return try DeviceRig(device, features: features)
  }

  @Test("What is written is read back, and is in the file", arguments: engines)
  func roundTrip(engine: BlockEngine) throws {
    let file = try ScratchFile(size: 1 << 20)
    let rig = try rig(file, engine)
    let data = pattern(8192)
    let written = try rig.writeDisk(16, data)
    #expect(written.status == 0)
    #expect(written.used == 1)
    let back = try rig.readDisk(16, 8192)
    #expect(back.status == 0)
    #expect(back.used == 8193)
    #expect(back.data == data)
    #expect(Array(file.bytes[8192..<16384]) == data)
    #expect(file.bytes.count == 1 << 20)
  }

  @Test("The ID is 20 bytes padded with NUL, and a short buffer gets its start", arguments: engines)
  func getID(engine: BlockEngine) throws {
    let file = try ScratchFile(size: 4096)
    let rig = try rig(file, engine) { $0.serial = "sluice-0001" }
    let id = Array("sluice-0001".utf8)
    let whole = try rig.perform(readable: [Wire.header(8)], writable: [20, 1])
    #expect(whole.used == 21)
    #expect(whole.bytes == id + [UInt8](repeating: 0, count: 9) + [0])
    let short = try rig.perform(readable: [Wire.header(8)], writable: [4, 1])
    #expect(short.used == 5)
    #expect(short.bytes == id.prefix(4) + [0])
    let long = try rig.perform(readable: [Wire.header(8)], writable: [30, 1])
    #expect(long.used == 20)
    #expect(long.bytes == id + [UInt8](repeating: 0, count: 9) + [UInt8](repeating: 0xEE, count: 10) + [0])
  }

  @Test("A flush succeeds", arguments: engines)
  func flush(engine: BlockEngine) throws {
    let file = try ScratchFile(size: 4096)
    let rig = try rig(file, engine)
    let result = try rig.command(4)
    #expect(result.status == 0)
    #expect(result.used == 1)
  }
}
