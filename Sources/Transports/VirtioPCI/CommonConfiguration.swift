import Synchronization
import Virtio
import VirtioServing

/// The common configuration structure (§4.1.4.3).
extension VirtioPCIFunction {
  private typealias Register = PCITransport.CommonRegister

  /// Reads any bytes of it: nothing here changes by being read.
  func readCommon(at offset: Int, width: Int) -> UInt64 {
    let selection = selection.withLock { $0 }
    let negotiated = control.negotiatedFeatures
    let index = Int(selection.queue)
    let queue = control.queue(index)
    var image = InlineArray<64, UInt8>(repeating: 0)
    func put(_ value: UInt64, _ at: Int, _ width: Int) {
      for i in 0..<width { image[at + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
    }
    put(UInt64(selection.deviceFeatures), Register.deviceFeatureSelect, 4)
    put(UInt64(control.deviceFeatures(word: selection.deviceFeatures)), Register.deviceFeature, 4)
    put(UInt64(selection.driverFeatures), Register.driverFeatureSelect, 4)
    put(UInt64(control.driverFeatures(word: selection.driverFeatures)), Register.driverFeature, 4)
    put(UInt64(interrupts.configurationVector), Register.configurationVector, 2)
    put(UInt64(control.queueCount), Register.queueCount, 2)
    put(UInt64(control.status.rawValue), Register.deviceStatus, 1)
    put(UInt64(control.configurationGeneration & 0xff), Register.configurationGeneration, 1)
    put(UInt64(selection.queue), Register.queueSelect, 2)
    put(UInt64(queue?.size ?? 0), Register.queueSize, 2)
    put(UInt64(interrupts.vector(ofQueue: index)), Register.queueVector, 2)
    put(queue?.isEnabled == true ? 1 : 0, Register.queueEnable, 2)
    put(layout.notifyStride > 0 && queue != nil ? UInt64(index) : 0, Register.queueNotifyOffset, 2)
    put(queue?.descriptorArea ?? 0, Register.queueDescriptor, 8)
    put(queue?.driverArea ?? 0, Register.queueDriver, 8)
    put(queue?.deviceArea ?? 0, Register.queueDevice, 8)
    if negotiated.contains(.notificationConfigurationData) {
      put(UInt64(Self.notificationData(selection.queue)), Register.queueNotificationData, 2)
    }
    // A queue reset is over before the write that asked for it returns: queue_reset is never seen as 1.
    var value: UInt64 = 0
    for i in 0..<min(max(width, 0), 8) where offset + i < image.count {
      value |= UInt64(image[offset + i]) << UInt64(8 * i)
    }
    return value
  }

  /// Takes writes of a field's own width, and halves of 64-bit fields (§4.1.3.1); others change nothing.
  func writeCommon(at offset: Int, width: Int, _ value: UInt64) {
    let index = Int(selection.withLock { $0.queue })
    let half = UInt16(truncatingIfNeeded: value)
    let word = UInt32(truncatingIfNeeded: value)
    switch (offset, width) {
    case (Register.deviceFeatureSelect, 4): selection.withLock { $0.deviceFeatures = word }
    case (Register.driverFeatureSelect, 4): selection.withLock { $0.driverFeatures = word }
    case (Register.driverFeature, 4): control.accept(word, word: selection.withLock { $0.driverFeatures })
    case (Register.configurationVector, 2): interrupts.setConfigurationVector(half)
    case (Register.deviceStatus, 1): setStatus(DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value)))
    case (Register.queueSelect, 2): selection.withLock { $0.queue = half }
    case (Register.queueSize, 2): control.setSize(half, ofQueue: index)
    case (Register.queueVector, 2): interrupts.setVector(half, ofQueue: index)
    case (Register.queueEnable, 2): if half == 1 { control.enableQueue(index) }
    case (Register.queueReset, 2):
      if half == 1, control.resetQueue(index) { interrupts.setVector(PCITransport.noVector, ofQueue: index) }
    case (Register.queueDescriptor..<Register.queueDescriptor + 8, _):
      setArea(.descriptor, index, offset - Register.queueDescriptor, width, value)
    case (Register.queueDriver..<Register.queueDriver + 8, _):
      setArea(.driver, index, offset - Register.queueDriver, width, value)
    case (Register.queueDevice..<Register.queueDevice + 8, _):
      setArea(.device, index, offset - Register.queueDevice, width, value)
    default: break
    }
  }

  private func setArea(_ area: DeviceControl.Area, _ index: Int, _ at: Int, _ width: Int, _ value: UInt64) {
    guard width == 4 || width == 8, at % width == 0 else { return }
    let shift = UInt64(8 * at)
    control.set(area, ofQueue: index, bits: value << shift, mask: (width == 8 ? .max : 0xffff_ffff) << shift)
  }
}
