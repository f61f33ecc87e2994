import HostIO
import PCI
internal import Storage

/// What the controller and its namespace say of themselves (5.15).
extension ControllerWorker {
  /// FR: 8 characters.
  static var firmware: [UInt8] { Array("1.0     ".utf8) }

  mutating func identify(_ command: borrowing NVMeCommand) throws(Refusal) {
    let namespace = command.namespace
    switch command.dwords[10] & 0xff {
    case 0:
      guard namespace == 1 else { throw Refusal(.invalidNamespace) }
      try yield(identifyNamespace, to: command)
    case 1: try yield(identifyController, to: command)
    case 2:
      guard namespace < 0xffff_fffe else { throw Refusal(.invalidNamespace) }
      var bytes = [UInt8](repeating: 0, count: 4096)
      if namespace < 1 { bytes[0] = 1 }
      try yield(bytes, to: command)
    case 3:
      guard namespace == 1 else { throw Refusal(.invalidNamespace) }
      // One descriptor: a namespace globally unique identifier of 16 bytes.
      var bytes: [UInt8] = [2, 16, 0, 0] + uniqueIdentifier
      bytes.append(contentsOf: repeatElement(0, count: 4096 - bytes.count))
      try yield(bytes, to: command)
    default: throw Refusal(.invalidField)
    }
  }

  private var identifyController: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    func put(_ value: UInt64, _ at: Int, _ width: Int) {
      for i in 0..<width { bytes[at + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
    }
    func put(_ text: String, _ at: Int, _ width: Int) {
      for i in 0..<width { bytes[at + i] = 0x20 }
      for (i, byte) in text.utf8.prefix(width).enumerated() { bytes[at + i] = byte }
    }
    put(UInt64(options.identity.vendorID), 0, 2)
    put(UInt64(options.identity.subsystemVendorID), 2, 2)
    put(options.disk.serial, 4, 20)
    put("Sluice NVMe", 24, 40)
    for (i, byte) in Self.firmware.enumerated() { bytes[64 + i] = byte }
    // MDTS in pages of 4096, with any MPS.
    put(UInt64((options.maxTransfer / 4096).trailingZeroBitCount), 77, 1)
    put(UInt64(ControllerState.version), 80, 4)
    // CNTRLTYPE: an I/O controller.
    bytes[111] = 1
    // ACL; AERL; FRMW: one slot, read only; LPA: offsets into log pages; ELPE.
    bytes[258] = 3
    bytes[259] = UInt8(ControllerEvents.maxRequests - 1)
    bytes[260] = 3
    bytes[261] = 4
    bytes[262] = UInt8(ControllerLogs.maxFailures - 1)
    // WCTEMP and CCTEMP: 70 and 80 °C.
    put(0x0157, 266, 2)
    put(0x0161, 268, 2)
    // SQES and CQES, least and most; NN.
    bytes[512] = 0x66
    bytes[513] = 0x44
    put(1, 516, 4)
    // ONCS: write zeroes, and dataset management if the image supports discards.
    put(1 << 3 | (disk.canDiscard ? 1 << 2 : 0), 520, 2)
    // VWC: bits 2:1 say that a flush may name all namespaces.
    bytes[525] = 6 | (hasVolatileCache ? 1 : 0)
    // SGLS: served, with any alignment.
    put(options.offersSGLs ? 1 : 0, 536, 4)
    let name = "nqn.2014-08.org.nvmexpress:uuid:" + uuid
    for (i, byte) in name.utf8.enumerated() { bytes[768 + i] = byte }
    return bytes
  }

  private var identifyNamespace: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    func put(_ value: UInt64, _ at: Int, _ width: Int) {
      for i in 0..<width { bytes[at + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
    }
    for at in [0, 8, 16] { put(blockCount, at, 8) }
    // DLFEAT: bits 2:0, deallocated blocks of a file read as zeroes; bit 3, write zeroes may deallocate.
    if disk.canDiscard { bytes[33] = (disk.file.kind == .regularFile ? 1 : 0) | 1 << 3 }
    // NSATTR: write protected.
    bytes[99] = disk.file.isReadOnly ? 1 : 0
    for (i, byte) in uniqueIdentifier.enumerated() { bytes[104 + i] = byte }
    // The one LBA format: LBADS.
    bytes[130] = UInt8(disk.blockSize.trailingZeroBitCount)
    return bytes
  }

  /// NGUID: the same for the same serial number and image.
  private var uniqueIdentifier: [UInt8] {
    func hash(_ seed: UInt64) -> UInt64 {
      var h = seed
      for byte in options.disk.serial.utf8 { h = (h ^ UInt64(byte)) &* 0x100_0000_01b3 }
      h = (h ^ 0xff) &* 0x100_0000_01b3
      for byte in disk.file.path.utf8 { h = (h ^ UInt64(byte)) &* 0x100_0000_01b3 }
      return h
    }
    return [hash(0xcbf2_9ce4_8422_2325), hash(0x8422_2325_cbf2_9ce4)].flatMap { h in
      (0..<8).map { UInt8(truncatingIfNeeded: h >> (8 * UInt64($0))) }
    }
  }

  private var uuid: String {
    let digits = Array("0123456789abcdef")
    var text = ""
    for (i, byte) in uniqueIdentifier.enumerated() {
      if [4, 6, 8, 10].contains(i) { text.append("-") }
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return text
  }
}
