public import PCI
import Virtio
import VirtioServing

/// Notifications as memory: a cell for each queue, whose value does not matter but that it was written. No driver
/// writes all ones: a queue's number, or what stands for it, is in the lower half.
extension VirtioPCIFunction: DoorbellFunction {
  public var doorbells: DoorbellArea? {
    guard layout.interface != .legacy, layout.notifyStride == 4 else { return nil }
    return DoorbellArea(
      bar: VirtioPCILayout.modernBAR, offset: VirtioPCILayout.notifyOffset, count: control.queueCount)
  }
}
