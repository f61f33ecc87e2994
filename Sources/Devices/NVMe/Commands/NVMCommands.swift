internal import DMA
import HostIO
internal import Storage

/// The NVM command set (6).
extension ControllerWorker {
  /// Does an I/O command, to its end.
  mutating func perform(_ command: borrowing NVMeCommand) -> NVMeStatus? {
    do throws(Refusal) {
      guard let opcode = NVMeOpcode(rawValue: command.opcode) else { throw Refusal(.invalidOpcode) }
      let namespace = command.namespace
      guard command.fused == 0 else { throw Refusal(.invalidField) }
      guard namespace == 1 || opcode == .flush && namespace == .max else { throw Refusal(.invalidNamespace) }
      switch opcode {
      case .flush: try flush()
      case .read: try read(command)
      case .write: try write(command)
      case .writeZeroes: try writeZeroes(command)
      case .datasetManagement: try manage(command)
      }
      return .success
    } catch {
      return error.status
    }
  }

  /// Where the blocks of a command are, and how many bytes.
  private func range(_ first: UInt64, _ blocks: UInt64) throws(Refusal) -> (position: UInt64, count: UInt64) {
    let all = blockCount
    guard first <= all, blocks <= all - first else { throw Refusal(.lbaOutOfRange) }
    return (first * UInt64(disk.blockSize), blocks * UInt64(disk.blockSize))
  }

  /// NSZE: blocks of the namespace now.
  var blockCount: UInt64 { (disk.sectorCount << 9) / UInt64(disk.blockSize) }

  private func transfer(_ command: borrowing NVMeCommand) throws(Refusal) -> (position: UInt64, count: Int) {
    guard command.blockCount * UInt64(disk.blockSize) <= UInt64(options.maxTransfer) else {
      throw Refusal(.invalidField)
    }
    let (position, count) = try range(command.startingBlock, command.blockCount)
    return (position, Int(count))
  }

  private mutating func read(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try transfer(command)
    let memory = try data(of: command, count: count, for: .write).seal(iotlb, fault: nil)
    let arrived = storage { file throws(HostError) in try file.read(into: memory.writable, at: position) }
    // The log in force now. After an error it is not known how much has arrived.
    if let log = iotlb.dirtyLog { memory.writable.markDirty(log, count: arrived ?? count) }
    pool.give(back: memory)
    guard let done = arrived else { throw Refusal(.unrecoveredReadError) }
    logs.readBytes &+= UInt64(done)
    logs.reads &+= 1
    guard done == count else {
      disk.endedEarly(position + UInt64(done))
      throw Refusal(.unrecoveredReadError)
    }
  }

  private mutating func write(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try transfer(command)
    try checkWritable()
    let memory = try data(of: command, count: count, for: .read).seal(iotlb, fault: nil)
    let isDurable = command.dwords[12] & NVMeCommand.forceUnitAccess != 0 || !disk.cache.isWriteback
    let written: Void? = storage { file throws(HostError) in
      try file.write(from: memory.readable, at: position, durable: isDurable)
    }
    pool.give(back: memory)
    guard written != nil else { throw Refusal(.writeFault) }
    logs.writtenBytes &+= UInt64(count)
    logs.writes &+= 1
  }

  private mutating func writeZeroes(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try range(command.startingBlock, command.blockCount)
    try checkWritable()
    let mayUnmap = command.dwords[12] & NVMeCommand.deallocate != 0 && disk.canDiscard
    let isDurable = command.dwords[12] & NVMeCommand.forceUnitAccess != 0 || !disk.cache.isWriteback
    let zeroed: Void? = storage { file throws(HostError) in
      try file.writeZeroes(at: position, count: count, unmap: mayUnmap)
      if isDurable { try file.flush() }
    }
    guard zeroed != nil else { throw Refusal(.writeFault) }
  }

  mutating func flush() throws(Refusal) {
    guard !disk.file.isReadOnly else { return }
    let flushed: Void? = storage { file throws(HostError) in try file.flush() }
    guard flushed != nil else { throw Refusal(.writeFault) }
  }

  /// Something that storage may take long for: meanwhile no mapping is held but those of the command's data. Nil if it
  /// failed, which is reported.
  private mutating func storage<T>(_ body: (BlockFile) throws(HostError) -> T) -> T? {
    letGo()
    defer { takeHold() }
    do throws(HostError) {
      return try body(disk.file)
    } catch {
      disk.faults.report("\(error)")
      return nil
    }
  }

  private func checkWritable() throws(Refusal) {
    if disk.file.isReadOnly { throw Refusal(.writeProtected) }
  }

  /// Dataset management: ranges whose contents are no longer needed. Other attributes are hints, of which nothing
  /// follows.
  private mutating func manage(_ command: borrowing NVMeCommand) throws(Refusal) {
    guard disk.canDiscard || disk.file.isReadOnly else { throw Refusal(.invalidOpcode) }
    let isDeallocate = command.dwords[11] & NVMeCommand.attributeDeallocate != 0
    if isDeallocate { try checkWritable() }
    let n = Int(command.dwords[10] & 0xff) + 1
    let list = try data(of: command, count: n * NVMeRange.byteCount, for: .read)
    // Copied, all at once: the driver may change them, and what is done is what was checked.
    var bytes = InlineArray<4096, UInt8>(repeating: 0)
    var span = bytes.mutableSpan
    _ = list.readable.copy(from: 0, into: &span)
    pool.give(back: list)
    func field(_ at: Int, _ width: Int) -> UInt64 {
      (0..<width).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64(8 * $1) }
    }
    for i in 0..<n { _ = try range(field(16 * i + 8, 8), field(16 * i + 4, 4)) }
    guard isDeallocate else { return }
    for i in 0..<n {
      let (position, count) = try range(field(16 * i + 8, 8), field(16 * i + 4, 4))
      let discarded: Void? = storage { file throws(HostError) in try file.discard(at: position, count: count) }
      guard discarded != nil else { throw Refusal(.writeFault) }
    }
  }
}
