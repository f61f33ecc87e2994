internal import DMA
import HostIO
public import PCI
public import Storage

/// An NVMe controller as a PCI function, with a namespace for each disk: NVM Express base specification 1.4, PCI
/// Express, NVM command set.
///
/// It reaches memory through its bus master's translated space and no other: it is no virtio device, does not decide
/// which memory its addresses name, and an IOMMU governs it independently of any negotiation (R080). A thread of its
/// own takes commands, and has many under way at the host at once; processors' threads read and write registers and never wait for it, but
/// in ``reset()``.
public final class NVMeController: PCIFunction {
  public let configuration: ConfigurationSpace
  private let master: BusMaster
  let state: ControllerState
  private let interrupts: ControllerInterrupts
  private let msix: MSIX?
  private let disks: NamespaceDisks
  private let watchers: [SizeWatcher]
  private let thread: WorkerThread

  static let registerBAR = 0
  /// The MSI-X table, and its pending bits in the second half.
  static let msixBAR = 4

  /// A controller on a bus: to be called from `PCIBus.add`.
  ///
  /// - Throws: what is wrong with an option, or what the host refuses.
  public init(_ options: NVMeOptions, on master: BusMaster) throws(NVMeError) {
    try options.check()
    let disks = try NamespaceDisks(options.disks)
    let vectors = options.vectors ?? options.ioQueues + 1
    let msix = vectors > 0 ? MSIX(count: vectors, master) : nil
    let intx = INTx(.a, of: master)
    let interrupts = ControllerInterrupts(msix, intx)
    var layout = ConfigurationLayout(options.identity, pin: .a)
    layout.add(BAR(index: Self.registerBAR, kind: .memory64(prefetchable: false), size: NVMeRegister.barSize))
    if vectors > 0 {
      layout.add(BAR(index: Self.msixBAR, kind: .memory32, size: 2 * UInt64(Self.pendingOffset)))
      layout.addMSIX(count: vectors, table: (Self.msixBAR, 0), pending: (Self.msixBAR, Self.pendingOffset))
    }
    configuration = ConfigurationSpace(layout, msix: msix, intx: intx)
    self.master = master
    self.disks = disks
    self.msix = msix
    self.interrupts = interrupts
    let state = try rethrowing(ControllerState(options), saying: NVMeError.host)
    self.state = state
    watchers = disks.all.enumerated().compactMap { i, one in
      one.disk.observe { state.noticeResize(of: UInt32(i + 1)) }
      return one.disk.options.sizePollInterval.map { SizeWatcher(one.disk, every: $0) }
    }
    for watcher in watchers { watcher.start() }
    let space = master.translated
    thread = try rethrowing(
      WorkerThread(name: "nvme") {
        var worker = ControllerWorker(state, disks, options, interrupts, space)
        worker.run()
      }, saying: NVMeError.host)
  }

  deinit {
    state.stop()
    thread.join()
  }

  /// The sizes of the namespaces now, in bytes: of namespace 1 first.
  public var byteCounts: [UInt64] { disks.all.map { $0.disk.sectorCount << 9 } }
  /// The size of namespace 1 now, in bytes.
  public var byteCount: UInt64 { byteCounts[0] }
  /// Which calls read and write the images, of namespace 1 first: uring or synchronous.
  public var engines: [DiskEngine] { disks.all.map(\.engine) }
  /// What the namespaces are like now: namespace 1 first.
  public var namespaces: [NVMeNamespaceState] { disks.all.map { NVMeNamespaceState($0.disk, $0.engine) } }
  /// Looks now whether an image was resized, and announces it.
  public func refreshSizes() { for one in disks.all { one.disk.refreshSize() } }
  /// CSTS, as a driver reads it.
  public var status: NVMeControllerStatus { state.registers.status }

  /// Room for the largest table.
  private static let pendingOffset = UInt32(MSIX.maxVectors * MSIX.entryBytes)

  // MARK: PCIFunction

  public func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    configuration.write(at: offset, width: width, value)
    interrupts.refresh()
  }

  public func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64 {
    if index == Self.msixBAR, let msix {
      let pending = UInt64(Self.pendingOffset)
      return offset < pending
        ? msix.readTable(at: offset, width: width) : msix.readPending(at: offset - pending, width: width)
    }
    // Doorbells read as nothing (3.1.24).
    guard index == Self.registerBAR, offset < NVMeRegister.doorbells else { return 0 }
    var value = UInt64(register(offset & ~3)) >> (8 * (offset & 3))
    if width == 8, offset & 3 == 0 { value |= UInt64(register(offset + 4)) << 32 }
    return value
  }

  public func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64) {
    if index == Self.msixBAR, let msix {
      if offset < UInt64(Self.pendingOffset) { msix.writeTable(at: offset, width: width, value) }
      return
    }
    // Registers are written as whole dwords or quadwords (3.1).
    guard index == Self.registerBAR, offset & 3 == 0, width == 4 || width == 8 else { return }
    write(offset, UInt32(truncatingIfNeeded: value))
    if width == 8 { write(offset + 4, UInt32(truncatingIfNeeded: value >> 32)) }
  }

  public func reset() {
    state.powerOn()
    configuration.reset()
    interrupts.reset()
  }

  // MARK: Registers, a dword each

  private func register(_ offset: UInt64) -> UInt32 {
    let registers = state.registers
    func half(_ value: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: offset & 4 == 0 ? value : value >> 32) }
    switch offset {
    case NVMeRegister.capabilities, NVMeRegister.capabilities + 4: return half(state.capabilities)
    case NVMeRegister.version: return ControllerState.version
    case NVMeRegister.interruptMaskSet, NVMeRegister.interruptMaskClear: return interrupts.mask
    case NVMeRegister.configuration: return registers.configuration.rawValue
    case NVMeRegister.status: return registers.status.rawValue
    case NVMeRegister.adminQueueAttributes: return registers.adminQueueAttributes
    case NVMeRegister.adminSubmissionQueue, NVMeRegister.adminSubmissionQueue + 4:
      return half(registers.adminSubmissionQueue)
    case NVMeRegister.adminCompletionQueue, NVMeRegister.adminCompletionQueue + 4:
      return half(registers.adminCompletionQueue)
    default: return 0
    }
  }

  private func write(_ offset: UInt64, _ value: UInt32) {
    func replace(_ old: inout UInt64) {
      let isHigh = offset & 4 != 0
      old = isHigh ? old & 0xffff_ffff | UInt64(value) << 32 : old & ~0xffff_ffff | UInt64(value & ~0xfff)
    }
    switch offset {
    case NVMeRegister.interruptMaskSet: interrupts.mask(value)
    case NVMeRegister.interruptMaskClear: interrupts.unmask(value)
    case NVMeRegister.configuration: state.write(configuration: value)
    case NVMeRegister.adminQueueAttributes: state.write { $0.adminQueueAttributes = value & 0x0fff_0fff }
    case NVMeRegister.adminSubmissionQueue, NVMeRegister.adminSubmissionQueue + 4:
      state.write { replace(&$0.adminSubmissionQueue) }
    case NVMeRegister.adminCompletionQueue, NVMeRegister.adminCompletionQueue + 4:
      state.write { replace(&$0.adminCompletionQueue) }
    case NVMeRegister.doorbells...:
      let number = Int((offset - NVMeRegister.doorbells) / 4)
      if number % 2 == 0 { state.ringSubmission(number / 2, value) } else { state.ringCompletion(number / 2, value) }
    default: break
    }
  }
}
