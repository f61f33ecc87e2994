import Synchronization
import Virtio

/// Configuration changes and device errors that the driver has to be notified of, and whether it may be notified now.
/// Takes no lock of the device's control.
final class ConfigurationNotifier: DeviceEvents {
  private enum Phase {
    /// No driver yet.
    static let quiet: UInt8 = 0
    static let live: UInt8 = 1
    static let suspended: UInt8 = 2
  }
  private let phase = Atomic<UInt8>(Phase.quiet)
  private let isLegacy = Atomic<Bool>(false)
  private let isBroken = Atomic<Bool>(false)
  /// The configuration has changed since it was last read.
  private let isChanged = Atomic<Bool>(false)
  /// It changed while the device was suspended: the driver is notified afterwards (§3.4.2).
  private let isOwed = Atomic<Bool>(false)
  private let changes = Atomic<UInt32>(0)
  private let interrupts: any DeviceInterrupts

  init(_ interrupts: any DeviceInterrupts) { self.interrupts = interrupts }

  var needsReset: Bool { isBroken.load(ordering: .acquiring) }
  var isSuspended: Bool { phase.load(ordering: .acquiring) == Phase.suspended }
  var mayStartLegacyQueues: Bool {
    isLegacy.load(ordering: .acquiring) && phase.load(ordering: .acquiring) == Phase.quiet
  }
  var generation: UInt32 { changes.load(ordering: .acquiring) }

  func useLegacy() { isLegacy.store(true, ordering: .releasing) }

  func goLive(isLegacy: Bool) {
    self.isLegacy.store(isLegacy, ordering: .releasing)
    phase.store(Phase.live, ordering: .sequentiallyConsistent)
  }

  func silence() { phase.store(Phase.quiet, ordering: .sequentiallyConsistent) }

  func suspend() { phase.store(Phase.suspended, ordering: .sequentiallyConsistent) }

  func resume() {
    phase.store(Phase.live, ordering: .sequentiallyConsistent)
    if isOwed.exchange(false, ordering: .sequentiallyConsistent) { interrupts.configurationChanged() }
  }

  /// As after a reset. Queue threads have ended.
  func forget() {
    silence()
    isLegacy.store(false, ordering: .releasing)
    isBroken.store(false, ordering: .releasing)
    isOwed.store(false, ordering: .releasing)
  }

  func needsReset(_ index: Int, _ error: QueueError) {
    // Legacy drivers know no such bit.
    guard !isLegacy.load(ordering: .acquiring) else { return }
    isBroken.store(true, ordering: .releasing)
    announce()
  }

  func configurationChanged() {
    isChanged.store(true, ordering: .sequentiallyConsistent)
    announce()
  }

  private func announce() {
    switch phase.load(ordering: .sequentiallyConsistent) {
    case Phase.live: interrupts.configurationChanged()
    case Phase.suspended:
      isOwed.store(true, ordering: .sequentiallyConsistent)
      // It may have gone on between the two.
      if phase.load(ordering: .sequentiallyConsistent) == Phase.live,
        isOwed.exchange(false, ordering: .sequentiallyConsistent)
      {
        interrupts.configurationChanged()
      }
    default: break
    }
  }

  func noteRead() {
    if isChanged.exchange(false, ordering: .sequentiallyConsistent) {
      changes.add(1, ordering: .sequentiallyConsistent)
    }
  }
}
