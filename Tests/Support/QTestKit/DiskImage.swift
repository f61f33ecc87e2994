/// A disk image in which the place determines every byte.
public struct DiskImage {
  /// The file.
  public let path: String
  /// 512-byte sectors.
  public let sectors: Int

  private static let common = pattern(0, count: 2048 * 512)

  /// - `seed`: images of different seeds differ in every word.
  public init(in scratch: Scratch, sectors: Int = 2048, name: String = "disk", seed: UInt64 = 1) throws(QTestError) {
    self.sectors = sectors
    let bytes = sectors == 2048 && seed == 1 ? Self.common : Self.pattern(0, count: sectors * 512, seed: seed)
    path = try scratch.write(bytes, to: name)
  }

  /// What the image holds at first from a sector on.
  public static func pattern(_ sector: Int, count: Int, seed: UInt64 = 1) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count)
    var word = UInt64(sector) &* 64
    while bytes.count < count {
      var mixed = (word &+ seed) &* 0x9e37_79b9_7f4a_7c15
      mixed ^= mixed >> 29
      for _ in 0..<min(8, count - bytes.count) {
        bytes.append(UInt8(truncatingIfNeeded: mixed))
        mixed >>= 8
      }
      word &+= 1
    }
    return bytes
  }

  /// What the file holds now, seen from outside.
  public func read(_ sector: Int, count: Int) throws(QTestError) -> [UInt8] {
    try Scratch.read(path, at: sector * 512, count: count)
  }
}
