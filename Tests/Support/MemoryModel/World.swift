import DMA
import Foundation
import VirtioTestKit

/// The machine's memory, and the model of it. All that processors write goes into both.
final class World {
  let memory = GuestMemory()
  var model = NaiveModel()
  /// Where an IOMMU's driver keeps its tables, and where rings are: 16 pages for each function.
  static let tables: UInt64 = 0x10_0000
  static let tableBytes = 96 * 4096
  static let rings: UInt64 = 0x20_0000
  static let functions = 3
  /// Where buffers are: page numbers, holes left out.
  private(set) var data: [UInt64] = []
  /// The region that comes and goes.
  let hot: UInt64
  static let hotBytes = 4 * 4096
  private(set) var isHotThere = true
  /// Where buffers begin, a multiple of 2 MiB; a region of 18 pages is 2 MiB on.
  let base: UInt64

  init(base: UInt64, _ random: inout SeededGenerator) throws {
    self.base = base
    hot = base + 0x80_0000
    try add(Self.tables, [UInt8](repeating: 0, count: Self.tableBytes))
    try add(Self.rings, [UInt8](repeating: 0, count: Self.functions * 16 * 4096))
    // The second adjoins the first, the last is high up.
    for (start, pages) in [(base, 12), (base + 12 * 4096, 7), (base + 0x20_0000, 18), (0x73_1240_0000, 5)] {
      try add(start, Self.noise(pages * 4096, &random))
      data += (0..<UInt64(pages)).map { start >> 12 + $0 }
    }
    try add(hot, Self.noise(Self.hotBytes, &random))
    data += (0..<4).map { hot >> 12 + $0 }
  }

  static func noise(_ count: Int, _ random: inout SeededGenerator) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count)
    for _ in 0..<(count + 7) / 8 {
      let word = random.next()
      for i in 0..<UInt64(8) { bytes.append(UInt8(truncatingIfNeeded: word >> (8 * i))) }
    }
    return Array(bytes.prefix(count))
  }

  private func add(_ start: UInt64, _ bytes: [UInt8]) throws {
    let mapping = try HostMapping(anonymous: bytes.count)
    _ = mapping.copy(bytes.span, to: 0)
    try memory.add(
      MemoryRegion(
        guestAddress: GuestAddress(start), byteCount: UInt64(bytes.count),
        mapping: mapping))
    model.regions.append((start, bytes))
  }

  /// Takes the hot region away, or brings it back with other bytes.
  func toggleHotRegion(_ random: inout SeededGenerator) throws {
    isHotThere.toggle()
    if isHotThere { return try add(hot, Self.noise(Self.hotBytes, &random)) }
    try memory.remove(
      guestAddress: GuestAddress(hot), byteCount: UInt64(Self.hotBytes))
    model.regions.removeAll { $0.start == hot }
  }

  // MARK: What processors do

  func write(_ bytes: [UInt8], at guest: UInt64) {
    _ = memory.copy(bytes.span, to: GuestAddress(guest))
    // Page by page: regions that adjoin are two for the model.
    for at in stride(from: 0, to: bytes.count, by: 4096 - Int(guest & 4095)) {
      model.write(bytes[at..<min(bytes.count, at + 4096 - Int(guest & 4095))], guest + UInt64(at))
    }
  }

  func write(_ word: UInt64, bigEndian: Bool = false, at guest: UInt64) {
    write((0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64(bigEndian ? 7 - $0 : $0))) }, at: guest)
  }

  func word(at guest: UInt64) -> UInt64 {
    model.read(guest, 8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  func real(_ guest: UInt64, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = memory.copy(from: GuestAddress(guest), into: &span)
    return bytes
  }

  /// The model takes over what is in memory: for rings, which are judged by what they say.
  func adopt(_ guest: UInt64, _ count: Int) { model.write(real(guest, count)[...], guest) }

  /// The first byte that differs from the model's, or nil.
  ///
  /// - Parameter ignored: memory that devices may be writing now, which is not compared.
  func difference(
    from model: NaiveModel, ignoring ignored: [Range<UInt64>]
  ) -> (guest: UInt64, real: UInt8, model: UInt8)? {
    for region in model.regions {
      var real = real(region.start, region.bytes.count)
      for range in ignored
      where range.lowerBound >= region.start && range.upperBound <= region.start + UInt64(real.count) {
        let part = Int(range.lowerBound - region.start)..<Int(range.upperBound - region.start)
        real.replaceSubrange(part, with: region.bytes[part])
      }
      // Compared in one piece: byte by byte only once it is known that there is something to find.
      if Data(real) == Data(region.bytes) { continue }
      for i in real.indices where real[i] != region.bytes[i] {
        return (region.start + UInt64(i), real[i], region.bytes[i])
      }
    }
    return nil
  }
}
