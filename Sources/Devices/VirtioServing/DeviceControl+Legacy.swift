internal import DMA
import Synchronization
public import Virtio

/// The legacy interface (§3.1.2): 32 feature bits, one address a queue, no FEATURES_OK. Rings and configuration are
/// little-endian, as a legacy driver on a little-endian machine has them; on others this interface must not be offered.
///
/// Addresses are always guest-physical: bit 33 cannot be accepted here (R025, R027).
extension DeviceControl {
  /// The 32 bits that a legacy driver is offered (R026).
  public var legacyFeatures: UInt32 { UInt32(truncatingIfNeeded: offeredFeatures.union(.anyLayout).rawValue) }

  /// What a legacy driver accepts. Queues it uses already go on with that.
  public func acceptLegacy(_ bits: UInt32) {
    state.withLock { state in
      guard !state.negotiation.status.contains(.featuresOK) else { return }
      state.negotiation.acceptLegacy(bits)
      alarm.useLegacy()
      for index in state.queues.indices {
        if let position = runner.stop(index) { start(index, &state, at: position) }
      }
    }
  }

  /// A write to the legacy status register.
  public func setLegacyStatus(_ status: DeviceStatus) {
    state.withLock { state in
      // A driver that has negotiated through the modern interface is not a legacy one.
      guard status.isEmpty || !state.negotiation.status.contains(.featuresOK) else { return }
      let step = state.negotiation.writeLegacy(status)
      if state.negotiation.isLegacy { alarm.useLegacy() }
      take(step, &state)
    }
  }

  /// How many descriptors a legacy queue has, where the interface lets the driver choose: a power of two, before the
  /// queue is used.
  public func setLegacySize(_ size: UInt16, ofQueue index: Int) {
    state.withLock { state in
      guard state.queues.indices.contains(index), !state.queues[index].isEnabled,
        !state.negotiation.status.contains(.featuresOK),
        size > 0, size <= device.maxQueueSizes[index], size & (size - 1) == 0
      else { return }
      state.queues[index].size = size
    }
  }

  /// Where a legacy queue is, in pages; 0 takes it away.
  ///
  /// - Parameters:
  ///   - pageSize: bytes the address counts.
  ///   - alignment: of the used ring.
  public func setLegacyAddress(ofQueue index: Int, page: UInt32, pageSize: UInt64, alignment: UInt64) {
    state.withLock { state in
      guard state.queues.indices.contains(index), !state.negotiation.status.contains(.featuresOK),
        state.queues[index].size > 0
      else { return }
      alarm.useLegacy()
      _ = runner.stop(index)
      guard page != 0 else {
        state.queues[index].isEnabled = false
        state.queues[index].descriptorArea = 0
        return
      }
      let layout = QueueLayout(legacyAt: UInt64(page) &* pageSize, size: state.queues[index].size, alignment: alignment)
      state.queues[index].descriptorArea = layout.descriptorArea.rawValue
      state.queues[index].driverArea = layout.driverArea.rawValue
      state.queues[index].deviceArea = layout.deviceArea.rawValue
      state.queues[index].isEnabled = true
      // DRIVER_OK stays set when FAILED comes to it.
      if state.negotiation.status.contains(.driverOK), !state.negotiation.status.contains(.failed) {
        start(index, &state)
      }
    }
  }

  /// Legacy drivers may use queues before DRIVER_OK, and some do: their notification is what starts one then (R027).
  func startLegacyQueue(_ index: Int) {
    state.withLock { state in
      guard state.queues[index].isEnabled, !state.negotiation.status.contains(.featuresOK),
        !state.negotiation.status.contains(.failed)
      else { return }
      start(index, &state)
    }
  }
}
