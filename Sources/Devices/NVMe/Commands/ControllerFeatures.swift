internal import DMA
internal import Storage

/// What Set Features has set since the controller was enabled (5.21).
struct ControllerFeatures {
  /// Queues that the driver may make: all until it asks for a number.
  var submissionQueues: Int
  var completionQueues: Int
  /// Values that are only remembered, by identifier. Round robin takes commands one by one, and ignores the arbitration
  /// burst.
  private var remembered: [UInt32]

  init(_ options: NVMeOptions) {
    submissionQueues = options.ioQueues
    completionQueues = options.ioQueues
    remembered = Array(repeating: 0, count: 16)
    // Critical temperature of a device that has none.
    remembered[Int(NVMeFeature.temperatureThreshold.rawValue)] = 0x0157
  }

  subscript(_ feature: NVMeFeature) -> UInt32 {
    get { remembered[Int(feature.rawValue)] }
    set { remembered[Int(feature.rawValue)] = newValue }
  }
}

extension ControllerWorker {
  mutating func getFeatures(_ command: borrowing NVMeCommand) throws(Refusal) -> UInt32 {
    guard let feature = NVMeFeature(rawValue: UInt8(truncatingIfNeeded: command.dwords[10])) else {
      throw Refusal(.invalidField)
    }
    // SEL: ONCS says that there is nothing to select, so current values are all there are.
    guard command.dwords[10] >> 8 & 7 == 0 else { throw Refusal(.invalidField) }
    switch feature {
    case .numberOfQueues: return queueNumbers
    case .volatileWriteCache: return disk.cache.isWriteback ? 1 : 0
    case .interruptVectorConfiguration:
      let vector = command.dwords[11] & 0xffff
      guard Int(vector) < interrupts.vectorCount else { throw Refusal(.invalidField) }
      // Nothing is coalesced: bit 16 is CD.
      return vector | 1 << 16
    default: return features[feature]
    }
  }

  mutating func setFeatures(_ command: borrowing NVMeCommand) throws(Refusal) -> UInt32 {
    guard let feature = NVMeFeature(rawValue: UInt8(truncatingIfNeeded: command.dwords[10])) else {
      throw Refusal(.invalidField)
    }
    guard command.dwords[10] >> 31 == 0 else { throw Refusal(.featureNotSaveable) }
    let value = command.dwords[11]
    switch feature {
    case .numberOfQueues:
      let (submissions, completions) = (value & 0xffff, value >> 16)
      guard submissions < 0xffff, completions < 0xffff else { throw Refusal(.invalidField) }
      guard !hasIOQueues else { throw Refusal(.commandSequenceError) }
      features.submissionQueues = min(Int(submissions) + 1, options.ioQueues)
      features.completionQueues = min(Int(completions) + 1, options.ioQueues)
      return queueNumbers
    case .volatileWriteCache:
      guard hasVolatileCache else { throw Refusal(.invalidField) }
      guard options.disk.cacheIsConfigurable || value & 1 != 0 else { throw Refusal(.featureNotChangeable) }
      // What was written before and may still be volatile is not the driver's to flush any more.
      if value & 1 == 0, disk.cache.isWriteback { try flush() }
      disk.cache.set(writeback: value & 1 != 0)
    case .powerManagement:
      guard value & 31 == 0 else { throw Refusal(.invalidField) }
    case .interruptVectorConfiguration:
      guard Int(value & 0xffff) < interrupts.vectorCount else { throw Refusal(.invalidField) }
    default: features[feature] = value
    }
    return 0
  }

  /// VWC: whether writes may be volatile at all.
  var hasVolatileCache: Bool { options.disk.writeback || options.disk.cacheIsConfigurable }

  private var queueNumbers: UInt32 {
    UInt32(features.submissionQueues - 1) | UInt32(features.completionQueues - 1) << 16
  }

  private var hasIOQueues: Bool {
    for i in 1..<submissions.count where submissions[i].isOpen || completions[i].isOpen { return true }
    return false
  }
}
