import HostIO
import PCI
import Storage

/// Bytes of a data structure at fixed places, little-endian.
private struct Structure {
  var bytes = [UInt8](repeating: 0, count: 4096)

  mutating func put(_ value: UInt64, _ at: Int, _ width: Int) {
    for i in 0..<width { bytes[at + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
  }
  /// Padded with spaces.
  mutating func put(_ text: String, _ at: Int, _ width: Int) {
    for i in 0..<width { bytes[at + i] = 0x20 }
    put(Array(text.utf8.prefix(width)), at)
  }
  mutating func put(_ values: [UInt8], _ at: Int) { for (i, byte) in values.enumerated() { bytes[at + i] = byte } }
}

/// What the controller and its namespaces say of themselves (5.15; NVM Express base specification 2.0, 5.17).
extension ControllerWorker {
  /// FR: 8 characters.
  static var firmware: [UInt8] { Array("1.0     ".utf8) }
  /// CNTLID.
  private static var controllerID: UInt64 { 0 }

  mutating func identify(_ command: borrowing NVMeCommand) throws(Refusal) {
    let number = command.namespace
    let structure = command.dwords[10] & 0xff
    // CSI: the NVM command set is the only one.
    if [5, 6, 7].contains(structure), command.dwords[11] >> 24 != 0 { throw Refusal(.invalidField) }
    switch structure {
    case 0x00: try yield(namespace(try index(number)), to: command)
    case 0x01: try yield(controller, to: command)
    case 0x02, 0x07: try yield(try namespaceList(after: number), to: command)
    case 0x03: try yield(descriptors(try index(number)), to: command)
    case 0x05:
      // Nothing of metadata and protection.
      _ = try index(number)
      try yield(Structure().bytes, to: command)
    // No limits but those of the controller.
    case 0x06: try yield(Structure().bytes, to: command)
    case 0x08: try yield(independent(try index(number)), to: command)
    case 0x12:
      _ = try index(number)
      try yield(controllers(from: command.dwords[10] >> 16), to: command)
    case 0x13: try yield(controllers(from: command.dwords[10] >> 16), to: command)
    case 0x1c:
      var sets = Structure()
      sets.put(1, 0, 8)
      try yield(sets.bytes, to: command)
    default: throw Refusal(.invalidField)
    }
  }

  /// Where a namespace is in the list.
  private func index(_ number: UInt32) throws(Refusal) -> Int {
    guard number > 0, number <= UInt32(namespaces.count) else { throw Refusal(.invalidNamespace) }
    return Int(number) - 1
  }

  /// Active namespaces with larger numbers.
  private func namespaceList(after number: UInt32) throws(Refusal) -> [UInt8] {
    guard number < 0xffff_fffe else { throw Refusal(.invalidNamespace) }
    var list = Structure()
    for (i, next) in (1...UInt32(namespaces.count)).filter({ $0 > number }).enumerated() {
      list.put(UInt64(next), 4 * i, 4)
    }
    return list.bytes
  }

  private func controllers(from least: UInt32) -> [UInt8] {
    var list = Structure()
    if UInt64(least) <= Self.controllerID {
      list.put(1, 0, 2)
      list.put(Self.controllerID, 2, 2)
    }
    return list.bytes
  }

  private var controller: [UInt8] {
    var c = Structure()
    c.put(UInt64(options.identity.vendorID), 0, 2)
    c.put(UInt64(options.identity.subsystemVendorID), 2, 2)
    c.put(identity.serial, 4, 20)
    c.put("Sluice NVMe", 24, 40)
    c.put(Self.firmware, 64)
    // MDTS in pages of 4096, with any MPS.
    c.put(UInt64((options.maxTransfer / 4096).trailingZeroBitCount), 77, 1)
    c.put(Self.controllerID, 78, 2)
    c.put(UInt64(ControllerState.version), 80, 4)
    // OAES: changed namespaces.
    c.put(UInt64(ControllerEvents.namespaceNotices), 92, 4)
    // CNTRLTYPE: an I/O controller.
    c.put(1, 111, 1)
    // OACS: Doorbell Buffer Config, and neither security, format, firmware, namespace management nor self-test.
    c.put(1 << 8, 256, 2)
    // ACL; AERL; FRMW: one slot, read only; LPA: commands and effects, offsets into log pages; ELPE.
    c.put(UInt64(Self.mostAborts - 1), 258, 1)
    c.put(UInt64(ControllerEvents.maxRequests - 1), 259, 1)
    c.put(3, 260, 1)
    c.put(1 << 1 | 1 << 2, 261, 1)
    c.put(UInt64(ControllerLogs.maxFailures - 1), 262, 1)
    // WCTEMP and CCTEMP: 70 and 80 °C.
    c.put(0x0157, 266, 2)
    c.put(0x0161, 268, 2)
    // SQES and CQES, least and most; NN.
    c.put(0x66, 512, 1)
    c.put(0x44, 513, 1)
    c.put(UInt64(namespaces.count), 516, 4)
    c.put(UInt64(commandSupport), 520, 2)
    // VWC: bits 2:1 say that a flush may name all namespaces.
    c.put(6 | (hasVolatileCache ? 1 : 0), 525, 1)
    // SGLS: served, with any alignment.
    c.put(options.offersSGLs ? 1 : 0, 536, 4)
    c.put(Array(identity.qualifiedName.utf8), 768)
    return c.bytes
  }

  /// ONCS: compare, write zeroes, and dataset management if an image supports discards.
  var commandSupport: UInt32 { 1 | 1 << 3 | (namespaces.contains { $0.disk.canDiscard } ? 1 << 2 : 0) }

  private func namespace(_ i: Int) -> [UInt8] {
    let disk = namespaces[i].disk
    let (blocks, size) = (namespaces[i].blockCount, disk.blockSize)
    var n = Structure()
    n.put(blocks, 0, 8)
    n.put(blocks, 8, 8)
    // NUSE: what takes space, where the image may be sparse, and THINP says so.
    let isThin = disk.file.kind == .regularFile && disk.canDiscard
    let used =
      isThin ? (try? disk.file.allocatedSize()).map { min(blocks, ($0 + UInt64(size) - 1) / UInt64(size)) } : nil
    n.put(used ?? blocks, 16, 8)
    func inBlocks(_ bytes: Int) -> UInt64 { UInt64(clamping: max(1, bytes / size) - 1) }
    let geometry = disk.file.geometry
    // NSFEAT: THINP, OPTPERF; the latter's granularities, less one each.
    n.put((used != nil ? 1 : 0) | 1 << 4, 24, 1)
    n.put(min(0xffff, inBlocks(geometry.physicalBlock)), 64, 2)
    n.put(min(0xffff, inBlocks(geometry.physicalBlock)), 66, 2)
    n.put(min(0xffff, inBlocks(max(geometry.discardGranularity, size))), 68, 2)
    n.put(min(0xffff, inBlocks(max(geometry.discardGranularity, size))), 70, 2)
    if geometry.optimalIO > 0 { n.put(min(0xffff, inBlocks(geometry.optimalIO)), 72, 2) }
    // DLFEAT: bits 2:0, deallocated blocks of a file read as zeroes; bit 3, write zeroes may deallocate.
    if disk.canDiscard { n.put((disk.file.kind == .regularFile ? 1 : 0) | 1 << 3, 33, 1) }
    // NSATTR: write protected.
    n.put(disk.file.isReadOnly ? 1 : 0, 99, 1)
    n.put(identity.namespaces[i].nguid, 104)
    n.put(identity.namespaces[i].eui64, 120)
    // The one LBA format: LBADS.
    n.put(UInt64(size.trailingZeroBitCount), 130, 1)
    return n.bytes
  }

  /// What does not depend on the command set.
  private func independent(_ i: Int) -> [UInt8] {
    var n = Structure()
    n.put(namespaces[i].disk.file.isReadOnly ? 1 : 0, 8, 1)
    // NSTAT: ready.
    n.put(1, 14, 1)
    return n.bytes
  }

  /// Type, length, and the identifier, of each; the last tells the command set.
  private func descriptors(_ i: Int) -> [UInt8] {
    let ids = identity.namespaces[i]
    var list = Structure()
    var at = 0
    for (type, value) in [(UInt8(1), ids.eui64), (2, ids.nguid), (3, ids.uuid), (4, [0])] {
      list.put([type, UInt8(value.count), 0, 0] + value, at)
      at += 4 + value.count
    }
    return list.bytes
  }
}
