// Words for people, in a file of their own: a driver on bare metal does without.
internal import DMA
import IOMMUInterface
import Virtio

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
      this platform protects its memory, and the device would go past that: it does not offer feature bits \
      \(missing.bits). Give the device the properties iommu_platform=on and disable-legacy=on
      """
    case .addressMismatch(let guest, let mapped):
      """
      the platform maps memory at \(hexadecimal(guest.rawValue)) to device address \
      \(hexadecimal(mapped.rawValue)), and the device does not offer VIRTIO_F_ACCESS_PLATFORM: it may or may not go \
      through the IOMMU. Give the device the property iommu_platform=on, \
      or tell the platform that its hosts go past the IOMMU
      """
    case .noQueue(let index): "the device has no queue \(index)"
    case .noRoom(let bytes, let maximum):
      "a queue needs \(bytes) bytes in one mapping, and the platform maps \(maximum) at most"
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
    case .incomplete(let written, let needed):
      "the device says it is done, having written \(written) of \(needed) bytes"
    }
  }
}

private func hexadecimal(_ n: UInt64) -> String { "0x" + String(n, radix: 16) }
