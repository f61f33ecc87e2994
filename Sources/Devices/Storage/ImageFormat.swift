internal import HostIO

/// Formats of disk images that are not raw, recognized by their first bytes.
///
/// Read once, when an image is opened. A guest that writes such bytes to its raw disk keeps it from being opened again,
/// and gains nothing else: nothing here reads a format.
enum ImageFormat: String, CaseIterable {
  case qcow = "qcow"
  case qcow2 = "qcow2"
  case qed = "QED"
  case vdi = "VDI"
  case vhd = "VHD"
  case vhdx = "VHDX"
  case vmdk = "VMDK"
  case parallels = "Parallels"
  case bochs = "Bochs"
  case luks = "LUKS"

  /// The format of an image; nil for one that looks raw, or cannot be read now.
  static func find(in file: BlockFile) -> ImageFormat? {
    guard let first = try? file.bytes(at: 0, count: 512) else { return nil }
    return allCases.first { $0.begins(first) }
  }

  private func begins(_ bytes: [UInt8]) -> Bool {
    let qcow: [UInt8] = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0]
    func text(_ text: String) -> Bool { bytes.starts(with: text.utf8) }
    return switch self {
    case .qcow: bytes.starts(with: qcow + [1])
    case .qcow2: bytes.starts(with: qcow + [2]) || bytes.starts(with: qcow + [3])
    case .qed: text("QED\0")
    case .vdi: bytes.count >= 68 && bytes[64..<68].elementsEqual([0x7f, 0x10, 0xda, 0xbe])
    case .vhd: text("conectix")
    case .vhdx: text("vhdxfile")
    case .vmdk: text("KDMV") || text("COWD") || text("# Disk DescriptorFile")
    case .parallels: text("WithoutFreeSpace") || text("WithouFreSpacExt")
    case .bochs: text("Bochs Virtual HD Image")
    case .luks: bytes.starts(with: [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe])
    }
  }
}
