public import DMA
public import Virtio

/// Why a driver cannot go on, or a request failed.
public enum DriverError: Error, Hashable, Sendable {
  /// Another kind of device than the driver's.
  case wrongDevice(DeviceID)
  /// The device did not come out of its reset in the time allowed (§2.4.2).
  case reset(DeviceStatus)
  /// The device does not work with these features (§3.1.1, step 6).
  case features(Features)
  /// A feature that the driver cannot do without is not offered.
  case missing(Features)
  /// The platform lets no device in that lacks these features (R174).
  case restricted(missing: Features)
  /// VIRTIO_F_ACCESS_PLATFORM is not offered, and the platform's addresses are other ones than physical memory's (R175).
  case addressMismatch(guest: GuestAddress, mapped: DMAAddress)
  /// The device has no such queue.
  case noQueue(Int)
  /// Not even the smallest queue fits into one mapping (R176).
  case noRoom(bytes: UInt64, maximum: UInt64)
  /// The device gave up, and says so with DEVICE_NEEDS_RESET (§2.1.2).
  case needsReset
  /// The driver was stopped, or an error ended it: make a new one.
  case stopped
  /// Memory could not be mapped, or not be taken back.
  case dma(DMAError)
  /// The ring: full, or the device broke its rules.
  case queue(DriverQueueError)
  /// The device did not answer in the time allowed. The request's memory stays the device's until it does, or is reset (R179).
  case timeout
  /// A request needs so many descriptors, and has at most this many.
  case segments(Int, maximum: Int)
  /// The request makes no sense for this device: past its end, no whole sectors, an operation it does not offer.
  case request
  /// The device could not do it (§5.2.6, VIRTIO_BLK_S_IOERR).
  case ioError
  /// The device does not serve such requests (§5.2.6, VIRTIO_BLK_S_UNSUPP).
  case unsupported
  /// The device left a status that is none.
  case status(UInt8)
  /// The device says it is done, and wrote fewer bytes than that takes (§2.7.8).
  case incomplete(written: UInt32, needed: UInt64)
}

extension DriverError: CustomStringConvertible {
  /// A sentence for people: what is wrong and, where there is something, what to do.
  public var description: String {
    switch self {
    case .wrongDevice(let id): "this is a device of type \(id.rawValue), which another driver drives"
    case .reset(let status): "the device did not finish its reset: its status is still \(status.rawValue)"
    case .features(let features): "the device refuses these features together: bits \(features.bits)"
    case .missing(let features): "the device does not offer feature bits \(features.bits), which its driver needs"
    case .restricted(let missing):
      """
      this platform protects its memory, and the device would go past that: it does not offer feature bits \(missing.bits). \
      Give the device the properties iommu_platform=on and disable-legacy=on
      """
    case .addressMismatch(let guest, let mapped):
      """
      the platform maps memory at \(hexadecimal(guest.rawValue)) to device address \(hexadecimal(mapped.rawValue)), and the device does \
      not offer VIRTIO_F_ACCESS_PLATFORM: it may or may not go through the IOMMU. Give the device the property iommu_platform=on, \
      or tell the platform that its hosts go past the IOMMU
      """
    case .noQueue(let index): "the device has no queue \(index)"
    case .noRoom(let bytes, let maximum): "a queue needs \(bytes) bytes in one mapping, and the platform maps \(maximum) at most"
    case .needsReset: "the device asks to be reset"
    case .stopped: "the driver is stopped"
    case .dma(let error): "memory could not be handed to the device: \(error)"
    case .queue(let error): "the queue: \(error)"
    case .timeout: "the device does not answer"
    case .segments(let count, let maximum): "a request of \(count) pieces: \(maximum) is the most"
    case .request: "this device has no place for such a request"
    case .ioError: "the device failed to do it"
    case .unsupported: "the device does not do such things"
    case .status(let status): "the device left status \(status), which is none"
    case .incomplete(let written, let needed): "the device says it is done, having written \(written) of \(needed) bytes"
    }
  }
}

private func hexadecimal(_ n: UInt64) -> String { "0x" + String(n, radix: 16) }
