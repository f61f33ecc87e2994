import Synchronization
import Virtio
import VirtioServing

/// The registers of a legacy device (§4.2.4): a queue is where a page number says, in physical memory and never
/// anywhere else (R025).
extension VirtioMMIODevice {
  private typealias Register = MMIOTransport.Register

  func readLegacy(_ at: Int) -> UInt32 {
    guard at == Register.queuePageNumber, let queue = control.queue(selectedQueue), queue.isEnabled else { return 0 }
    let pageSize = guestPageSize.withLock { $0 }
    return pageSize == 0 ? 0 : UInt32(truncatingIfNeeded: queue.descriptorArea / UInt64(pageSize))
  }

  func writeLegacy(_ at: Int, _ value: UInt32) {
    let index = selectedQueue
    switch at {
    case Register.driverFeatures: if selection.withLock({ $0.driverFeatures }) == 0 { control.acceptLegacy(value) }
    case Register.guestPageSize:
      // While a queue is used its page number keeps its meaning.
      guard value & (value &- 1) == 0,
        !(0..<control.queueCount).contains(where: { control.queue($0)?.isEnabled == true })
      else { return }
      guestPageSize.withLock { $0 = value }
    case Register.queueSize: if let size = UInt16(exactly: value) { control.setLegacySize(size, ofQueue: index) }
    case Register.queueAlign:
      // A used ring is at a multiple of 4, and the driver may ask for a larger alignment only.
      guard value >= 4, value & (value - 1) == 0, index < control.queueCount else { return }
      selection.withLock { $0.alignments[UInt32(index)] = value }
    case Register.queuePageNumber:
      let pageSize = guestPageSize.withLock { $0 }
      guard value == 0 || pageSize > 0 else { return }
      let alignment = selection.withLock { $0.alignments[UInt32(truncatingIfNeeded: index)] }
      control.setLegacyAddress(
        ofQueue: index, page: value, pageSize: UInt64(pageSize),
        alignment: alignment.map(UInt64.init) ?? PCITransport.legacyPageSize)
    case Register.status:
      control.setLegacyStatus(DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value)))
      // GuestPageSize stays: drivers write it when they find the device, and reset the device afterwards.
      if value & 0xff == 0 { selection.withLock { $0 = Selection() } }
    default: break
    }
  }
}
