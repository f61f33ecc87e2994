public import DMA
import Synchronization
public import Virtio

extension GuestMemory {
  /// The bytes at an address, all of which have to be there.
  public func bytes(_ count: Int, at address: GuestAddress) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    precondition(copy(from: address, into: &span) == count, "a test reads where there is no memory")
    return bytes
  }

  /// Writes bytes, for all of which there has to be memory.
  public func write(_ bytes: [UInt8], at address: GuestAddress) {
    precondition(copy(bytes.span, to: address) == bytes.count, "a test writes where there is no memory")
  }
}

extension GuestMemory {
  /// Adds a region, of new memory unless it is given.
  public func add(
    _ address: UInt64, byteCount: UInt64, _ mapping: HostMapping? = nil, at offset: UInt64 = 0
  ) throws {
    let mapping = try mapping ?? HostMapping(anonymous: Int(byteCount))
    try add(
      MemoryRegion(
        guestAddress: GuestAddress(address),
        byteCount: byteCount, mapping: mapping, mappingOffset: offset))
  }

  /// Removes a region.
  public func remove(_ address: UInt64, byteCount: UInt64) throws {
    try remove(
      guestAddress: GuestAddress(address), byteCount: byteCount)
  }
}

extension GuestMemory {
  /// Pages from address 0 on, each full of its own number plus 1; of so many altogether, or of no others.
  public static func numbered(pages: Int, of count: Int? = nil) throws -> GuestMemory {
    let memory = try GuestMemory(byteCount: (count ?? pages) * 4096)
    for page in 0..<pages {
      memory.write([UInt8](repeating: UInt8(page + 1), count: 4096), at: GuestAddress(UInt64(page) * 4096))
    }
    return memory
  }

  /// Eight bytes at an address that is a multiple of eight; nil where there is no memory.
  public func word(_ address: UInt64) -> UInt64? { cells(at: GuestAddress(address), byteCount: 8)?.load64(at: 0) }
  public func setWord(_ address: UInt64, _ value: UInt64) {
    cells(at: GuestAddress(address), byteCount: 8)?.store64(value, at: 0)
  }
}

extension FixedWidthInteger {
  /// Its bytes, the lowest first.
  public var bytes: [UInt8] { (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> Self(8 * $0)) } }
}

extension [UInt8] {
  /// The number that the first eight bytes are, the lowest first.
  public var word: UInt64 { prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) } }
}

extension HostMapping {
  /// The bytes at an offset, all of which have to be there.
  public func bytes(_ count: Int, at offset: Int = 0) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    precondition(copy(from: offset, into: &span) == count, "a test reads past the end of a mapping")
    return bytes
  }
}

extension BufferSegments {
  /// All that there is, or as much as is wanted.
  public func bytes(_ most: Int = .max) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: min(most, byteCount))
    var span = bytes.mutableSpan
    let count = copy(from: 0, into: &span)
    precondition(count == bytes.count)
    return bytes
  }
}

extension VirtioDevice {
  /// Bytes of the configuration space; one that the device does not fill in stays 0xEE.
  public func configuration(_ count: Int, at offset: Int = 0) -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    readConfiguration(at: offset, into: &span)
    return bytes
  }
}

extension DriverTransport {
  /// Bytes of the configuration space; one that the device does not fill in stays 0xEE.
  public func configuration(_ count: Int, at offset: Int = 0) -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    readConfiguration(at: offset, into: &span)
    return bytes
  }
}

public func pattern(_ count: Int) -> [UInt8] { pattern(count, seed: 1) }

private let patterns = Mutex<[UInt64: [UInt8]]>([:])

/// Bytes that no other seed gives: a shorter pattern of the same seed is the start of a longer one.
public func pattern(_ count: Int, seed: some BinaryInteger) -> [UInt8] {
  let seed = UInt64(truncatingIfNeeded: seed)
  let known = patterns.withLock { $0[seed] } ?? []
  if known.count >= count { return Array(known[..<count]) }
  var x = seed &* 0x9E37_79B9_7F4A_7C15 | 1
  let bytes = (0..<count).map { _ in
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    return UInt8(truncatingIfNeeded: x >> 32)
  }
  patterns.withLock { $0[seed] = bytes }
  return bytes
}
