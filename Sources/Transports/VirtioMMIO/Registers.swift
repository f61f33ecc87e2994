import Synchronization
import Virtio
import VirtioServing

/// The control registers of virtio 1 (§4.2.2). What a legacy device has at the same places is in
/// `LegacyRegisters.swift`.
extension VirtioMMIODevice {
  private typealias Register = MMIOTransport.Register

  func readRegister(_ at: Int) -> UInt32 {
    switch at {
    case Register.magicValue: return MMIOTransport.magic
    case Register.version: return choices.isLegacy ? MMIOTransport.legacyVersion : MMIOTransport.version
    case Register.deviceID: return control.device.id.rawValue
    case Register.vendorID: return vendorID
    case Register.deviceFeatures:
      let word = selection.withLock { $0.deviceFeatures }
      return choices.isLegacy && word == 0 ? control.legacyFeatures : control.deviceFeatures(word: word)
    case Register.queueSizeMax: return UInt32(control.maxQueueSize(selectedQueue))
    case Register.interruptStatus: return interrupts.pending
    case Register.status: return UInt32(control.status.rawValue)
    default: return choices.isLegacy ? readLegacy(at) : readModern(at)
    }
  }

  private func readModern(_ at: Int) -> UInt32 {
    switch at {
    case Register.queueReady: return control.queue(selectedQueue)?.isEnabled == true ? 1 : 0
    // No region exists, with any selected: lengths and addresses of -1.
    case Register.sharedMemoryLength, Register.sharedMemoryLength + 4, Register.sharedMemoryBase,
      Register.sharedMemoryBase + 4:
      return .max
    case Register.configurationGeneration: return control.configurationGeneration
    // A queue reset is over before the write that asked for it returns: QueueReset is never seen as 1. Nor can what is
    // write-only be seen.
    default: return 0
    }
  }

  func writeRegister(_ at: Int, _ value: UInt32) {
    switch at {
    case Register.deviceFeaturesSelect: selection.withLock { $0.deviceFeatures = value }
    case Register.driverFeaturesSelect: selection.withLock { $0.driverFeatures = value }
    case Register.queueSelect: selection.withLock { $0.queue = value }
    // Bits above the lower 16 are a hint that is not needed here (§2.9).
    case Register.queueNotify: control.kick(Int(value & 0xffff))
    case Register.interruptACK: interrupts.acknowledge(value)
    default: if choices.isLegacy { writeLegacy(at, value) } else { writeModern(at, value) }
    }
  }

  private func writeModern(_ at: Int, _ value: UInt32) {
    let index = selectedQueue
    switch at {
    case Register.driverFeatures: control.accept(value, word: selection.withLock { $0.driverFeatures })
    case Register.queueSize: if let size = UInt16(exactly: value) { control.setSize(size, ofQueue: index) }
    case Register.queueReady:
      if value == 1 { control.enableQueue(index) }
      if value == 0 { control.disableQueue(index) }
    case Register.status:
      control.setStatus(DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value)))
      if value & 0xff == 0 { selection.withLock { $0 = Selection() } }
    case Register.queueReset: if value == 1 { control.resetQueue(index) }
    case Register.queueDescriptor: setHalf(.descriptor, index, value, shift: 0)
    case Register.queueDescriptor + 4: setHalf(.descriptor, index, value, shift: 32)
    case Register.queueDriver: setHalf(.driver, index, value, shift: 0)
    case Register.queueDriver + 4: setHalf(.driver, index, value, shift: 32)
    case Register.queueDevice: setHalf(.device, index, value, shift: 0)
    case Register.queueDevice + 4: setHalf(.device, index, value, shift: 32)
    default: break
    }
  }

  private func setHalf(_ area: DeviceControl.Area, _ index: Int, _ value: UInt32, shift: UInt64) {
    control.set(area, ofQueue: index, bits: UInt64(value) << shift, mask: 0xffff_ffff << shift)
  }

  var selectedQueue: Int { Int(selection.withLock { $0.queue }) }
}
