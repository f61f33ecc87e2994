import DMA
import HostIO
import VirtioDevices

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
    guard command.blockCount * UInt64(disk.blockSize) <= UInt64(options.maxTransfer) else { throw Refusal(.invalidField) }
    let (position, count) = try range(command.startingBlock, command.blockCount)
    return (position, Int(count))
  }

  private mutating func read(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try transfer(command)
    let list = try data(of: command, count: count, for: .write)
    let view = list.writable
    var done = 0
    do throws(HostError) {
      done = try disk.file.read(into: view, at: position)
    } catch {
      disk.faults.report("\(error)")
      // How much of it arrived is not known.
      if let log = iotlb.dirtyLog { view.markDirty(log, count: count) }
      throw Refusal(.unrecoveredReadError)
    }
    if let log = iotlb.dirtyLog { view.markDirty(log, count: done) }
    logs.readBytes &+= UInt64(done)
    logs.reads &+= 1
    pool.give(back: list)
    guard done == count else {
      disk.endedEarly(position + UInt64(done))
      throw Refusal(.unrecoveredReadError)
    }
  }

  private mutating func write(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try transfer(command)
    try checkWritable()
    let list = try data(of: command, count: count, for: .read)
    let isDurable = command.dwords[12] & NVMeCommand.forceUnitAccess != 0 || !disk.cache.isWriteback
    do throws(HostError) {
      try disk.file.write(from: list.readable, at: position, durable: isDurable)
    } catch {
      disk.faults.report("\(error)")
      throw Refusal(.writeFault)
    }
    logs.writtenBytes &+= UInt64(count)
    logs.writes &+= 1
    pool.give(back: list)
  }

  private mutating func writeZeroes(_ command: borrowing NVMeCommand) throws(Refusal) {
    let (position, count) = try range(command.startingBlock, command.blockCount)
    try checkWritable()
    let mayUnmap = command.dwords[12] & NVMeCommand.deallocate != 0 && disk.canDiscard
    let isDurable = command.dwords[12] & NVMeCommand.forceUnitAccess != 0 || !disk.cache.isWriteback
    do throws(HostError) {
      try disk.file.writeZeroes(at: position, count: count, unmap: mayUnmap)
      if isDurable { try disk.file.flush() }
    } catch {
      disk.faults.report("\(error)")
      throw Refusal(.writeFault)
    }
  }

  func flush() throws(Refusal) {
    guard !disk.file.isReadOnly else { return }
    do throws(HostError) {
      try disk.file.flush()
    } catch {
      disk.faults.report("\(error)")
      throw Refusal(.writeFault)
    }
  }

  private func checkWritable() throws(Refusal) {
    if disk.file.isReadOnly { throw Refusal(.writeProtected) }
  }

  /// Dataset management: ranges whose contents are no longer needed. Other attributes are hints, of which nothing follows.
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
    func field(_ at: Int, _ width: Int) -> UInt64 { (0..<width).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64(8 * $1) } }
    for i in 0..<n { _ = try range(field(16 * i + 8, 8), field(16 * i + 4, 4)) }
    guard isDeallocate else { return }
    for i in 0..<n {
      let (position, count) = try range(field(16 * i + 8, 8), field(16 * i + 4, 4))
      do throws(HostError) {
        try disk.file.discard(at: position, count: count)
      } catch {
        disk.faults.report("\(error)")
        throw Refusal(.writeFault)
      }
    }
  }
}
