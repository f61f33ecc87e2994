/// How a driver reads and writes its device's configuration over registers: each field in one access of its own width,
/// fields of 64 bits in two of 32 (§4.1.3.1, §4.2.2.2), and bytes outside fields one by one.
enum ConfigurationFields {
  private static func width(_ offset: Int, _ count: Int) -> Int {
    switch count {
    case 8 where offset % 4 == 0: 4
    case 4 where offset % 4 == 0: 4
    case 2 where offset % 2 == 0: 2
    default: 1
    }
  }

  static func read(
    at offset: Int, into bytes: inout MutableSpan<UInt8>, _ register: (_ at: Int, _ width: Int) -> UInt32
  ) {
    let width = width(offset, bytes.count)
    for i in bytes.indices where i % width == 0 {
      let value = register(offset &+ i, width)
      for j in 0..<width { bytes[i + j] = UInt8(truncatingIfNeeded: value >> UInt32(8 * j)) }
    }
  }

  static func write(
    at offset: Int, from bytes: Span<UInt8>, _ register: (_ at: Int, _ width: Int, _ value: UInt32) -> Void
  ) {
    let width = width(offset, bytes.count)
    for i in bytes.indices where i % width == 0 {
      var value: UInt32 = 0
      for j in 0..<width { value |= UInt32(bytes[i + j]) << UInt32(8 * j) }
      register(offset &+ i, width, value)
    }
  }
}
