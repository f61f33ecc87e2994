import Foundation

/// A firmware image that does nothing: the processor halts with interrupts off at its first instruction, and the test
/// has the machine to itself.
enum HaltImage {
  /// 64 KiB, the smallest size QEMU takes; the reset vector is 16 bytes below the end.
  static var bytes: [UInt8] {
    var image = [UInt8](repeating: 0xf4, count: 65_536)
    let vector: [UInt8] = [0xfa, 0xf4, 0xeb, 0xfd]  // cli; hlt; jump back to hlt
    for (offset, byte) in vector.enumerated() { image[0xfff0 + offset] = byte }
    return image
  }
}
