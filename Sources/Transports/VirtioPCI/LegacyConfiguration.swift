import PCI
import Synchronization
import Virtio
import VirtioServing

/// The legacy structure in I/O space (§4.1.4.10), little-endian throughout.
extension VirtioPCIFunction {
  private typealias Register = PCITransport.LegacyRegister

  private var deviceStart: Int { Register.deviceConfiguration(isMSIXEnabled: configuration.isMSIXEnabled) }

  /// Header fields have their own width; the device's configuration may be read in any.
  func readLegacy(at offset: Int, width: Int) -> UInt64 {
    if offset >= deviceStart { return readDevice(at: offset - deviceStart, width: width) }
    let index = Int(selection.withLock { $0.queue })
    switch (offset, width) {
    case (Register.deviceFeatures, 4): return UInt64(control.legacyFeatures)
    case (Register.driverFeatures, 4): return UInt64(control.driverFeatures(word: 0))
    case (Register.queueAddress, 4):
      guard let queue = control.queue(index), queue.isEnabled else { return 0 }
      return queue.descriptorArea / PCITransport.legacyPageSize & 0xffff_ffff
    case (Register.queueSize, 2): return UInt64(control.queue(index)?.size ?? 0)
    case (Register.queueSelect, 2): return UInt64(index)
    case (Register.deviceStatus, 1): return UInt64(control.status.rawValue)
    case (Register.isrStatus, 1): return UInt64(interrupts.takeISR())
    case (Register.configurationVector, 2): return UInt64(interrupts.configurationVector)
    case (Register.queueVector, 2): return UInt64(interrupts.vector(ofQueue: index))
    default: return 0
    }
  }

  func writeLegacy(at offset: Int, width: Int, _ value: UInt64) {
    if offset >= deviceStart { return writeDevice(at: offset - deviceStart, width: width, value) }
    let index = Int(selection.withLock { $0.queue })
    let half = UInt16(truncatingIfNeeded: value)
    let word = UInt32(truncatingIfNeeded: value)
    switch (offset, width) {
    case (Register.driverFeatures, 4): control.acceptLegacy(word)
    case (Register.queueAddress, 4):
      control.setLegacyAddress(
        ofQueue: index, page: word, pageSize: PCITransport.legacyPageSize, alignment: PCITransport.legacyPageSize)
    case (Register.queueSelect, 2): selection.withLock { $0.queue = half }
    case (Register.queueNotify, 2): control.kick(Int(half))
    case (Register.deviceStatus, 1):
      control.setLegacyStatus(DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value)))
      if value & 0xff == 0 { selection.withLock { $0 = Selection() } }
    case (Register.configurationVector, 2): interrupts.setConfigurationVector(half)
    case (Register.queueVector, 2): interrupts.setVector(half, ofQueue: index)
    default: break
    }
  }
}
