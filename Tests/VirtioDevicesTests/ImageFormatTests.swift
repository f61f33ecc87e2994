import Testing
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("Images that are not raw") struct ImageFormatTests {
  /// The first bytes of an image of each format, as their descriptions have them.
  static let heads: [(String, [UInt8])] = [
    ("qcow", Array("QFI".utf8) + [0xfb, 0, 0, 0, 1]), ("qcow2", Array("QFI".utf8) + [0xfb, 0, 0, 0, 2]),
    ("qcow2", Array("QFI".utf8) + [0xfb, 0, 0, 0, 3]), ("QED", Array("QED\0".utf8)), ("VHD", Array("conectix".utf8)),
    ("VHDX", Array("vhdxfile".utf8)), ("VMDK", Array("KDMV".utf8)), ("VMDK", Array("COWD".utf8)),
    ("VMDK", Array("# Disk DescriptorFile\n".utf8)), ("LUKS", Array("LUKS".utf8) + [0xba, 0xbe, 0, 1]),
    ("VDI", [UInt8](repeating: 0x20, count: 64) + [0x7f, 0x10, 0xda, 0xbe]),
    ("Parallels", Array("WithoutFreeSpace".utf8)),
    ("Parallels", Array("WithouFreSpacExt".utf8)), ("Bochs", Array("Bochs Virtual HD Image".utf8)),
  ]

  private func options(_ file: ScratchFile, _ change: (inout BlockOptions) -> Void) -> BlockOptions {
    var options = BlockOptions(path: file.path)
    change(&options)
    return options
  }

  @Test(
    "An image that begins like one of another format is refused by its name, for reading too, and served on insisting",
    arguments: heads)
  func refused(_ format: String, _ head: [UInt8]) throws {
    let file = try ScratchFile(head + [UInt8](repeating: 0, count: 8192 - head.count))
    for change in [{ _ in }, { $0.readOnly = true }, { $0.direct = true }] as [(inout BlockOptions) -> Void] {
      #expect(throws: DiskError.format(format)) { try BlockDevice(options(file, change)) }
    }
    #expect(try BlockDevice(options(file) { $0.insistsOnRaw = true }).byteCount == 8192)
    #expect(Array(file.bytes.prefix(head.count)) == head)
  }

  @Test(
    "What a guest writes while its disk is served is not looked at; a raw image that is short, empty or random is raw")
  func raw() throws {
    let (_, rig) = try EngineKind(engine: .automatic).disk(size: 65536)
    #expect(try rig.writeDisk(0, Array("vhdxfile".utf8) + [UInt8](repeating: 0, count: 504)).status == 0)
    #expect(try rig.readDisk(0, 512).data.starts(with: Array("vhdxfile".utf8)))
    for bytes in [pattern(65536), Array("QFI".utf8), [], Array("LUKS".utf8) + [UInt8](repeating: 0, count: 1000)]
      as [[UInt8]]
    {
      let file = try ScratchFile(bytes)
      #expect(try BlockDevice(options(file) { _ in }).byteCount == UInt64(bytes.count / 512 * 512))
    }
  }

  @Test("A resize is reported to the disk's server, with both sizes")
  func resized() throws {
    let file = try ScratchFile(size: 65536)
    let lines = LogLines()
    let device = try BlockDevice(
      options(file) {
        $0.notice = { lines.add($0) }
        $0.sizePollInterval = nil
      })
    device.refreshSize()
    #expect(lines.all.isEmpty)
    try file.truncate(131072)
    device.refreshSize()
    #expect(lines.all == ["\(file.path) was resized: the disk has 131072 bytes now, and had 65536"])
  }
}
