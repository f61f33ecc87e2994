internal import DMA
internal import Examination
internal import HostIO

/// The memory that the client shows to a device: one file, and which device addresses lead to which part of it now.
///
/// Device addresses are far from the offsets they lead to, so that a server which mixes them up is seen.
final class ClientMemory {
  /// Bytes of the file.
  static let byteCount: UInt64 = 2 << 20
  /// The device address of the file's first byte, where the check says nothing else.
  static let base: UInt64 = 0x1_0000_0000
  /// The first bytes are for a driver's rings; what is behind them is for data.
  static let ringBytes: UInt64 = 1 << 20
  static let page: UInt64 = 4096

  /// Device addresses that lead to memory.
  struct Window: Equatable {
    var address: UInt64
    var size: UInt64
    var offset: UInt64
    var flags: UInt32
  }

  /// A DMA_READ or DMA_WRITE of what is not mapped for it.
  struct Stray: CustomStringConvertible {
    var name: String
    var address: UInt64
    var count: UInt64
    var description: String { "\(name) of \(count) bytes at \(hex(address))" }
  }

  let file: MemoryFile
  /// The file's, to be sent along with mappings.
  var descriptor: Int32 { file.descriptor.rawValue }
  let mapping: HostMapping
  /// The same, as a machine's memory that starts at ``base``: for drivers.
  let guest = GuestMemory()
  /// What is mapped now: what the server may ask for.
  private(set) var windows: [Window] = []
  /// DMA_READ and DMA_WRITE that were served, and that asked for what is not mapped.
  private(set) var served = 0
  private(set) var outside: [Stray] = []

  init() throws(Finding) {
    file = try rethrowing(MemoryFile(name: "sluice-check", size: Self.byteCount), saying: Finding.notChecked)
    mapping = try rethrowing(
      HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: Int(Self.byteCount)),
      saying: Finding.notChecked)
    let region = try rethrowing(
      MemoryRegion(guestAddress: GuestAddress(Self.base), byteCount: Self.byteCount, mapping: mapping),
      saying: Finding.notChecked)
    try rethrowing(guest.add(region), saying: Finding.notChecked)
  }

  // MARK: Windows

  func open(_ window: Window) { windows.append(window) }
  func close(_ address: UInt64, _ size: UInt64) {
    windows.removeAll { $0.address >= address && $0.address - address < size }
  }
  func closeAll() { windows = [] }

  /// Bytes at a device address, as the server may have them; nil: not all of it is mapped for that.
  func read(_ address: UInt64, _ count: UInt64) -> [UInt8]? {
    guard let pieces = pieces(address, count, MapFlags.read, "DMA_READ") else { return nil }
    return pieces.flatMap { bytes(at: $0.offset, Int($0.count)) }
  }

  /// Puts bytes at a device address; false: not all of it is mapped for that.
  func write(_ address: UInt64, _ bytes: [UInt8]) -> Bool {
    guard let pieces = pieces(address, UInt64(bytes.count), MapFlags.write, "DMA_WRITE") else { return false }
    var rest = bytes[...]
    for piece in pieces {
      let part = Array(rest.prefix(Int(piece.count)))
      _ = mapping.copy(part.span, to: Int(piece.offset))
      rest = rest.dropFirst(part.count)
    }
    return true
  }

  private func pieces(
    _ address: UInt64, _ count: UInt64, _ access: UInt32, _ name: String
  ) -> [(offset: UInt64, count: UInt64)]? {
    served += 1
    var found: [(offset: UInt64, count: UInt64)] = []
    var (at, left) = (address, count)
    while left > 0 {
      guard
        let window = windows.first(where: { $0.address <= at && at - $0.address < $0.size && $0.flags & access != 0 })
      else {
        if outside.count < 1024 { outside.append(Stray(name: name, address: address, count: count)) }
        return nil
      }
      let step = min(left, window.size - (at - window.address))
      found.append((window.offset + (at - window.address), step))
      left -= step
      at &+= step
    }
    return found
  }

  // MARK: Bytes

  func bytes(at offset: UInt64, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = mapping.copy(from: Int(offset), into: &span)
    return bytes
  }

  /// Fills a part of the file with a byte that no answer is made of.
  func poison(at offset: UInt64, _ count: UInt64, _ byte: UInt8 = 0xa5) {
    let bytes = [UInt8](repeating: byte, count: Int(count))
    _ = mapping.copy(bytes.span, to: Int(offset))
  }

  /// Where a part of the file is no longer what it was filled with; nil: all of it is.
  func spoiled(at offset: UInt64, _ count: UInt64, _ byte: UInt8 = 0xa5) -> UInt64? {
    bytes(at: offset, Int(count)).firstIndex { $0 != byte }.map { offset + UInt64($0) }
  }
}
