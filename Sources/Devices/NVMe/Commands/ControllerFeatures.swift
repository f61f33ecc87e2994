internal import DMA
import HostIO
import Storage

/// What Set Features has set since the controller was enabled (5.21).
struct ControllerFeatures {
  /// Queues that the driver may make: all until it asks for a number.
  var submissionQueues: Int
  var completionQueues: Int
  /// Values that are only remembered, by identifier. Round robin takes commands one by one, and ignores the arbitration
  /// burst.
  private var remembered: [UInt32]
  /// The temperature, in kelvins, over which, and under which, it is critical.
  var thresholds: (over: UInt32, under: UInt32) = (0x0157, 0)

  init(_ options: NVMeOptions) {
    submissionQueues = options.ioQueues
    completionQueues = options.ioQueues
    remembered = Array(repeating: 0, count: 16)
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
    case .volatileWriteCache: return namespaces.contains { $0.disk.cache.isWriteback } ? 1 : 0
    case .temperatureThreshold:
      let (sensor, kind) = Self.threshold(command.dwords[11])
      guard sensor == 0, kind < 2 else { throw Refusal(.invalidField) }
      return kind == 0 ? features.thresholds.over : features.thresholds.under
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
      try setCaches(writeback: value & 1 != 0)
    case .temperatureThreshold:
      // 15: all sensors, of which there is one.
      let (sensor, kind) = Self.threshold(value)
      guard sensor == 0 || sensor == 15, kind < 2 else { throw Refusal(.invalidField) }
      if kind == 0 { features.thresholds.over = value & 0xffff } else { features.thresholds.under = value & 0xffff }
    case .powerManagement:
      guard value & 31 == 0 else { throw Refusal(.invalidField) }
    case .interruptVectorConfiguration:
      guard Int(value & 0xffff) < interrupts.vectorCount else { throw Refusal(.invalidField) }
    default: features[feature] = value
    }
    return 0
  }

  /// TMPSEL and THSEL.
  private static func threshold(_ dword: UInt32) -> (sensor: UInt32, kind: UInt32) {
    (dword >> 16 & 15, dword >> 20 & 3)
  }

  private mutating func setCaches(writeback: Bool) throws(Refusal) {
    for namespace in namespaces {
      let disk = namespace.disk
      // What was written before and may still be volatile is not the driver's to flush any more. What is in flight is
      // not either: it is waited for.
      if !writeback, disk.cache.isWriteback, !disk.file.isReadOnly {
        disk.cache.set(writeback: false)
        settle()
        letGo()
        defer { takeHold() }
        do throws(HostError) {
          try disk.file.flush()
        } catch {
          disk.faults.report("\(error)")
          throw Refusal(.writeFault)
        }
      }
      disk.cache.set(writeback: writeback)
    }
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
