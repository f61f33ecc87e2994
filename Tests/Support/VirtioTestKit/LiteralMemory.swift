public import DMA

/// Guest memory as a literal ring's author sees it: by the addresses the device is given, byte for byte.
///
/// Where those addresses lead is a plain list of pages, kept apart from the space that the device under test looks them
/// up in.
public final class LiteralMemory {
  public let memory: GuestMemory
  /// Device page number → guest page number; nil: the device's addresses are guest-physical.
  private var pages: [UInt64: UInt64]?

  /// Memory that everything is written to as well, and nothing else: what ``memory`` would be if no device had touched
  /// it.
  public let shadow: GuestMemory?

  public init(_ memory: GuestMemory, shadow: GuestMemory? = nil) {
    self.memory = memory
    self.shadow = shadow
  }

  /// From here on, 4 KiB pages have to be named with this.
  public func map(_ address: DMAAddress, byteCount: Int, to guest: GuestAddress) {
    var pages = self.pages ?? [:]
    for page in 0..<(UInt64(byteCount) + 4095) / 4096 {
      pages[address.rawValue / 4096 + page] = guest.rawValue / 4096 + page
    }
    self.pages = pages
  }

  public func guestAddress(_ address: DMAAddress) -> GuestAddress {
    guard let pages else { return GuestAddress(address.rawValue) }
    guard let page = pages[address.rawValue / 4096] else {
      preconditionFailure("a test uses address \(address) and never mapped it")
    }
    return GuestAddress(page * 4096 + address.rawValue % 4096)
  }

  public func write(_ bytes: [UInt8], at address: DMAAddress) {
    var done = 0
    while done < bytes.count {
      let at = address + done
      let part = Array(bytes[done..<min(bytes.count, done + 4096 - Int(at.rawValue % 4096))])
      _ = shadow?.copy(part.span, to: guestAddress(at))
      let n = memory.copy(part.span, to: guestAddress(at))
      precondition(n == part.count, "a test writes where there is no memory")
      done += n
    }
  }

  public func read(_ count: Int, at address: DMAAddress) -> [UInt8] {
    var result: [UInt8] = []
    while result.count < count {
      let at = address + result.count
      var part = [UInt8](repeating: 0, count: min(count - result.count, 4096 - Int(at.rawValue % 4096)))
      var span = part.mutableSpan
      let n = memory.copy(from: guestAddress(at), into: &span)
      precondition(n == part.count, "a test reads where there is no memory")
      result += part
    }
    return result
  }

  public func write(le16 value: UInt16, at address: DMAAddress) {
    write([UInt8(value & 255), UInt8(value >> 8)], at: address)
  }
  public func write(le32 value: UInt32, at address: DMAAddress) {
    write((0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }, at: address)
  }
  public func write(le64 value: UInt64, at address: DMAAddress) {
    write((0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }, at: address)
  }
  public func le16(at address: DMAAddress) -> UInt16 {
    let b = read(2, at: address)
    return UInt16(b[0]) | UInt16(b[1]) << 8
  }
  public func le32(at address: DMAAddress) -> UInt32 { UInt32(le16(at: address)) | UInt32(le16(at: address + 2)) << 16 }
  public func le64(at address: DMAAddress) -> UInt64 { UInt64(le32(at: address)) | UInt64(le32(at: address + 4)) << 32 }

  /// A 16-bit field that a device on another thread waits for: everything written before is seen first.
  public func publish(le16 value: UInt16, at address: DMAAddress) {
    guard let cell = memory.cells(at: guestAddress(address), byteCount: 2) else {
      preconditionFailure("no memory at \(address)")
    }
    shadow?.cells(at: guestAddress(address), byteCount: 2)?.storeRelease16(value.littleEndian, at: 0)
    RingMemory.fence()
    cell.storeRelease16(value.littleEndian, at: 0)
    RingMemory.fence()
  }

  /// A 16-bit field that a device on another thread writes: everything it wrote before is seen after.
  public func observe16(at address: DMAAddress) -> UInt16 {
    guard let cell = memory.cells(at: guestAddress(address), byteCount: 2) else {
      preconditionFailure("no memory at \(address)")
    }
    return UInt16(littleEndian: cell.loadAcquire16(at: 0))
  }
}

extension DMAAddress {
  public static func + (a: Self, bytes: Int) -> Self { Self(a.rawValue &+ UInt64(truncatingIfNeeded: bytes)) }
}
extension GuestAddress {
  public static func + (a: Self, bytes: Int) -> Self { Self(a.rawValue &+ UInt64(truncatingIfNeeded: bytes)) }
}
