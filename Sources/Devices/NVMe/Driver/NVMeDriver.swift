public import DMA
public import DriverDMA
public import PCI

/// The driver of an NVMe controller's first namespace, over any mapper of the platform.
///
/// Commands are submitted, published together, and reaped later; or done one by one with the functions that wait. One
/// thread uses it. Buffers are the controller's from submitting until reaping: leave them alone meanwhile.
public final class NVMeDriver {
  let access: any PCIFunctionAccess
  let mapper: any DMAMapper
  let options: NVMeDriverOptions
  private var admin: NVMeQueuePair?
  private var pairs: [NVMeQueuePair] = []
  private var shadow: DriverDoorbells?
  /// Bytes of a block.
  public private(set) var blockSize = 512
  /// The namespace's size when the driver started, in blocks.
  public private(set) var blockCount: UInt64 = 0
  /// Bytes of the longest transfer.
  public private(set) var maxTransfer = 2 << 20
  /// Whether nothing can be written.
  public private(set) var isReadOnly = false
  /// Whether the controller serves ``deallocate(_:using:)``, and ``writeZeroes(_:)``.
  public private(set) var canDeallocate = false
  public private(set) var canWriteZeroes = false
  /// Whether the controller takes doorbells in memory.
  private var canShadow = false
  /// SN and MN, without padding.
  public private(set) var serialNumber = ""
  public private(set) var modelNumber = ""

  /// Takes the controller over: resets it, makes its queues, and identifies it (7.6.1).
  ///
  /// - Throws: what made the driver give up. The controller is reset then, and no memory is left to it.
  public init(
    _ access: any PCIFunctionAccess, mapper: any DMAMapper, options: NVMeDriverOptions = NVMeDriverOptions()
  ) throws(NVMeDriverError) {
    self.access = access
    self.mapper = mapper
    self.options = options
    let code = access.readConfiguration(at: PCIRegister.revisionID, width: 4) >> 8
    guard code == 0x01_08_02 else { throw .notNVMe(classCode: code) }
    let command = PCICommand(
      rawValue: UInt16(truncatingIfNeeded: access.readConfiguration(at: PCIRegister.command, width: 2)))
    access.writeConfiguration(
      at: PCIRegister.command, width: 2, UInt32(command.union([.memorySpace, .busMaster]).rawValue))
    do throws(NVMeDriverError) {
      try start()
    } catch {
      try? stop()
      throw error
    }
  }

  deinit { try? stop() }

  /// Pairs of I/O queues.
  public var queueCount: Int { pairs.count }
  /// Commands under way in all queues.
  public var outstanding: Int { pairs.reduce(0) { $0 + $1.outstanding } }
  /// CSTS.
  public var status: NVMeControllerStatus { NVMeControllerStatus(rawValue: read(NVMeRegister.status)) }

  // MARK: Starting

  private func start() throws(NVMeDriverError) {
    let capabilities = UInt64(read(NVMeRegister.capabilities)) | UInt64(read(NVMeRegister.capabilities + 4)) << 32
    guard capabilities >> 48 & 15 == 0, capabilities >> 37 & 1 == 1, capabilities >> 32 & 15 == 0 else {
      throw .capabilities(capabilities)
    }
    try disable()
    if !options.messages.isEmpty { try enableMSIX() }
    let most = Int(capabilities & 0xffff) + 1
    let size = max(2, min(options.queueSize, most))
    let admin = try NVMeQueuePair(access, index: 0, size: min(32, most), maxSegments: 1, mapper: mapper)
    self.admin = admin
    write(NVMeRegister.adminQueueAttributes, UInt32(admin.size - 1) | UInt32(admin.size - 1) << 16)
    write64(NVMeRegister.adminSubmissionQueue, admin.submissionAddress.rawValue)
    write64(NVMeRegister.adminCompletionQueue, admin.completionAddress.rawValue)
    write(NVMeRegister.configuration, NVMeConfiguration(pageShift: 12).rawValue)
    guard try waitUntil({ self.status.contains(.ready) }) else { throw .notReady(status) }
    try identify()
    if options.usesShadowDoorbells, canShadow {
      // Kept before the controller is told, as queues are.
      let area = try DriverDoorbells(mapper)
      shadow = area
      var command = NVMeCommand(opcode: NVMeAdminOpcode.doorbellBufferConfig.rawValue, identifier: 0)
      command.pointer1 = area.addresses.doorbells.rawValue
      command.pointer2 = area.addresses.eventIndices.rawValue
      _ = try administer(command)
    }
    let wanted = UInt32(max(1, options.queues) - 1)
    var command = NVMeCommand(opcode: NVMeAdminOpcode.setFeatures.rawValue, identifier: 0)
    command.dwords[10] = UInt32(NVMeFeature.numberOfQueues.rawValue)
    command.dwords[11] = wanted | wanted << 16
    let granted = try administer(command)
    let count = min(wanted, granted & 0xffff, granted >> 16) + 1
    for i in 1...Int(count) { try addPair(i, size) }
  }

  private func addPair(_ index: Int, _ size: Int) throws(NVMeDriverError) {
    let pair = try NVMeQueuePair(
      access, index: index, size: size, maxSegments: max(1, min(options.maxSegments, 256)), mapper: mapper)
    // Kept before the controller is told: from then on the memory belongs to the controller until the reset.
    pair.shadow = shadow
    pairs.append(pair)
    var command = NVMeCommand(opcode: NVMeAdminOpcode.createCompletionQueue.rawValue, identifier: 0)
    command.pointer1 = pair.completionAddress.rawValue
    command.dwords[10] = UInt32(index) | UInt32(size - 1) << 16
    let hasMessage = !options.messages.isEmpty
    command.dwords[11] = 1 | (hasMessage ? 2 | UInt32(min(index, options.messages.count - 1)) << 16 : 0)
    _ = try administer(command)
    command = NVMeCommand(opcode: NVMeAdminOpcode.createSubmissionQueue.rawValue, identifier: 0)
    command.pointer1 = pair.submissionAddress.rawValue
    command.dwords[10] = UInt32(index) | UInt32(size - 1) << 16
    command.dwords[11] = 1 | UInt32(index) << 16
    _ = try administer(command)
  }

  private func identify() throws(NVMeDriverError) {
    let controller = try readIdentity(cns: 1, namespace: 0)
    func text(_ range: Range<Int>) -> String {
      let kept = range.map { controller[$0] }.filter { (0x20...0x7e).contains($0) }
      var string = kept.map { String(Unicode.Scalar($0)) }.joined()
      while string.last == " " { string.removeLast() }
      return string
    }
    serialNumber = text(4..<24)
    modelNumber = text(24..<64)
    // One page of PRPs holds 512 entries, and one more is in the command.
    if controller[77] > 0, controller[77] < 9 { maxTransfer = 4096 << Int(controller[77]) }
    canShadow = controller[257] & 1 != 0
    canDeallocate = controller[520] & 4 != 0
    canWriteZeroes = controller[520] & 8 != 0
    guard options.format == .prp || controller[536] & 3 != 0 else { throw .noSGLs }
    let namespace = try readIdentity(cns: 0, namespace: 1)
    blockCount = (0..<8).reduce(0) { $0 | UInt64(namespace[$1]) << UInt64(8 * $1) }
    let shift = namespace[128 + 4 * Int(namespace[26] & 15) + 2]
    guard (9...16).contains(shift) else { throw .request }
    blockSize = 1 << Int(shift)
    isReadOnly = namespace[99] & 1 != 0
  }

  private func readIdentity(cns: UInt32, namespace: UInt32) throws(NVMeDriverError) -> [UInt8] {
    var command = NVMeCommand(opcode: NVMeAdminOpcode.identify.rawValue, identifier: 0, namespace: namespace)
    command.dwords[10] = cns
    guard let admin else { throw .stopped }
    let (number, slot) = try admin.submitWithPage(command)
    admin.publish()
    if let error = try finish(number, in: admin).error { throw error }
    return admin.page(slot)
  }

  /// Does an admin command, and waits for it. Its data, if any, is named in it.
  private func administer(_ command: NVMeCommand) throws(NVMeDriverError) -> UInt32 {
    guard let admin else { throw .stopped }
    let none = InlineArray<0, GuestSegment> { _ in GuestSegment(GuestAddress(0), count: 0) }
    let number = try admin.submit(command, data: none.span, .toDevice, .prp)
    admin.publish()
    let completion = try finish(number, in: admin)
    if let error = completion.error { throw error }
    return completion.result
  }

  // MARK: Commands

  private func pair(_ queue: Int) throws(NVMeDriverError) -> NVMeQueuePair {
    guard admin != nil else { throw .stopped }
    guard pairs.indices.contains(queue) else { throw .request }
    return pairs[queue]
  }

  private func transfer(
    _ opcode: NVMeOpcode, _ block: UInt64, _ data: Span<GuestSegment>, _ direction: DMADirection, _ queue: Int,
    durable: Bool = false
  ) throws(NVMeDriverError) -> NVMeTag {
    let pair = try pair(queue)
    var bytes: UInt64 = 0
    for i in data.indices { bytes += UInt64(data[i].count) }
    let blocks = bytes / UInt64(blockSize)
    guard bytes > 0, bytes % UInt64(blockSize) == 0, bytes <= UInt64(maxTransfer), blocks <= 65536, block <= blockCount,
      blocks <= blockCount - block
    else { throw .request }
    var command = NVMeCommand(opcode: opcode.rawValue, identifier: 0, namespace: 1)
    command.startingBlock = block
    command.blockCount = blocks
    if durable { command.dwords[12] |= NVMeCommand.forceUnitAccess }
    return NVMeTag(queue: queue, number: try pair.submit(command, data: data, direction, options.format))
  }

  /// Reads from a block on into memory.
  public func submitRead(
    _ block: UInt64, into data: Span<GuestSegment>, queue: Int = 0
  ) throws(NVMeDriverError) -> NVMeTag {
    try transfer(.read, block, data, .fromDevice, queue)
  }

  /// Writes memory from a block on.
  ///
  /// - Parameter durable: completes only when it is on stable storage (FUA).
  public func submitWrite(
    _ block: UInt64, from data: Span<GuestSegment>, queue: Int = 0, durable: Bool = false
  ) throws(NVMeDriverError) -> NVMeTag {
    try transfer(.write, block, data, .toDevice, queue, durable: durable)
  }

  /// Makes what was written, and has completed, durable.
  public func submitFlush(queue: Int = 0) throws(NVMeDriverError) -> NVMeTag {
    try submit(NVMeCommand(opcode: NVMeOpcode.flush.rawValue, identifier: 0, namespace: 1), queue)
  }

  /// Makes a range read as zeroes: at most 65536 blocks.
  public func submitWriteZeroes(_ range: NVMeRange, queue: Int = 0) throws(NVMeDriverError) -> NVMeTag {
    guard canWriteZeroes, contains(range), range.blockCount <= 65536 else { throw .request }
    var command = NVMeCommand(opcode: NVMeOpcode.writeZeroes.rawValue, identifier: 0, namespace: 1)
    command.startingBlock = range.startingBlock
    command.blockCount = UInt64(range.blockCount)
    return try submit(command, queue)
  }

  /// Makes the contents of ranges undefined: at most 256.
  ///
  /// - Parameter list: 4096 bytes for the ranges on their way, the controller's until reaping.
  public func submitDeallocate(
    _ ranges: Span<NVMeRange>, using list: GuestAddress, queue: Int = 0
  ) throws(NVMeDriverError) -> NVMeTag {
    guard canDeallocate, (1...256).contains(ranges.count) else { throw .request }
    let pair = try pair(queue)
    var writer = WireWriter(capacity: ranges.count * NVMeRange.byteCount)
    for i in ranges.indices {
      guard contains(ranges[i]) else { throw .request }
      writer.write(UInt32(0))
      writer.write(ranges[i].blockCount)
      writer.write(ranges[i].startingBlock)
    }
    guard mapper.memory.copy(writer.bytes.span, to: list) == writer.bytes.count else { throw .dma(.missing(list)) }
    var command = NVMeCommand(opcode: NVMeOpcode.datasetManagement.rawValue, identifier: 0, namespace: 1)
    command.dwords[10] = UInt32(ranges.count - 1)
    command.dwords[11] = NVMeCommand.attributeDeallocate
    let data = [GuestSegment(list, count: UInt32(writer.bytes.count))]
    return NVMeTag(queue: queue, number: try pair.submit(command, data: data.span, .toDevice, options.format))
  }

  private func contains(_ range: NVMeRange) -> Bool {
    range.blockCount > 0 && range.startingBlock <= blockCount
      && UInt64(range.blockCount) <= blockCount - range.startingBlock
  }

  private func submit(_ command: NVMeCommand, _ queue: Int) throws(NVMeDriverError) -> NVMeTag {
    let none = InlineArray<0, GuestSegment> { _ in GuestSegment(GuestAddress(0), count: 0) }
    return NVMeTag(queue: queue, number: try pair(queue).submit(command, data: none.span, .toDevice, options.format))
  }

  /// Shows the controller what was submitted, in all queues.
  public func publish() { for pair in pairs { pair.publish() } }

  // MARK: Completing

  /// The next command of a queue that ended, or nil. The memory of its data is the driver's again.
  public func reap(queue: Int = 0) throws(NVMeDriverError) -> NVMeCompletion? { try pair(queue).reap() }

  /// Waits for one command, which is published first if it was not. Others that end meanwhile are kept for
  /// ``reap(queue:)``.
  ///
  /// - Throws: ``NVMeDriverError/timeout`` or ``NVMeDriverError/fatal``: the command is the controller's still.
  public func complete(_ tag: NVMeTag) throws(NVMeDriverError) -> NVMeCompletion {
    let pair = try pair(tag.queue)
    pair.publish()
    return try finish(tag.number, in: pair)
  }

  private func finish(_ number: UInt64, in pair: NVMeQueuePair) throws(NVMeDriverError) -> NVMeCompletion {
    var result: NVMeCompletion?
    let isDone = try waitUntil { () throws(NVMeDriverError) in
      result = try pair.reap(number)
      return result != nil
    }
    guard isDone, let result else { throw .timeout }
    return result
  }

  private func wait(for tag: NVMeTag) throws(NVMeDriverError) {
    if let error = try complete(tag).error { throw error }
  }

  /// Reads, and waits for it.
  public func read(_ block: UInt64, into data: Span<GuestSegment>) throws(NVMeDriverError) {
    try wait(for: submitRead(block, into: data))
  }
  /// Writes, and waits for it.
  public func write(_ block: UInt64, from data: Span<GuestSegment>, durable: Bool = false) throws(NVMeDriverError) {
    try wait(for: submitWrite(block, from: data, durable: durable))
  }
  /// Flushes, and waits for it.
  public func flush() throws(NVMeDriverError) { try wait(for: submitFlush()) }
  /// Writes zeroes, and waits for it.
  public func writeZeroes(_ range: NVMeRange) throws(NVMeDriverError) { try wait(for: submitWriteZeroes(range)) }
  /// Deallocates, and waits for it.
  public func deallocate(_ ranges: Span<NVMeRange>, using list: GuestAddress) throws(NVMeDriverError) {
    try wait(for: submitDeallocate(ranges, using: list))
  }

  // MARK: Ending

  /// Shuts the controller down, resets it, and takes all memory back. Commands that it had never complete.
  ///
  /// - Throws: ``NVMeDriverError/notReady(_:)`` when the controller does not come out of its reset: what it was given
  ///   stays its (R179).
  public func stop() throws(NVMeDriverError) {
    guard let admin else { return }
    let all = [admin] + pairs
    // Until the controller is idle: it may read its doorbells, and write beside them.
    admin.shadow = shadow
    shadow = nil
    self.admin = nil
    pairs = []
    do throws(NVMeDriverError) {
      if status.contains(.ready), !status.contains(.fatal) {
        var configuration = NVMeConfiguration(rawValue: read(NVMeRegister.configuration))
        configuration.shutdown = 1
        write(NVMeRegister.configuration, configuration.rawValue)
        _ = try waitUntil { self.status.contains(.shutdownComplete) }
      }
      try disable()
    } catch {
      // Never freed: the controller may write there for as long as the machine runs.
      for pair in all { pair.abandon() }
      throw error
    }
    var trouble: NVMeDriverError?
    admin.shadow = nil
    for pair in all { do throws(NVMeDriverError) { try pair.close() } catch { trouble = error } }
    if let trouble { throw trouble }
  }

  private func disable() throws(NVMeDriverError) {
    write(NVMeRegister.configuration, read(NVMeRegister.configuration) & ~1)
    // All ones: there is no controller any more, and nothing to wait for.
    let isGone = NVMeControllerStatus(rawValue: .max)
    guard waitPlainly({ !self.status.contains(.ready) || self.status == isGone }), status != isGone else {
      throw .notReady(status)
    }
  }
}
