import VirtioDrivers
import VirtioMMIO

/// The registers of a memory-mapped device, as a processor's load or store reaches them.
final class MMIOAccess: MMIORegisterAccess {
  private let device: VirtioMMIODevice
  init(_ device: VirtioMMIODevice) { self.device = device }
  func read(at offset: UInt64, width: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: device.read(at: offset, width: width))
  }
  func write(at offset: UInt64, width: Int, _ value: UInt32) { device.write(at: offset, width: width, UInt64(value)) }
}
