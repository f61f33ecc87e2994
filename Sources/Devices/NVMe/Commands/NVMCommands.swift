import DMA
import HostIO
import Storage

/// The NVM command set (6).
extension ControllerWorker {
  /// Begins an I/O command.
  ///
  /// - Parameter isLast: nothing is known to follow it.
  mutating func perform(_ command: borrowing NVMeCommand, _ queue: Int, isLast: Bool) {
    let record = CommandRecord(command, queue: queue)
    do throws(Refusal) {
      guard let request = try examine(command, record) else { return answer(record, .success) }
      start(request, isLast: isLast)
    } catch {
      answer(record, error.status)
    }
  }

  /// What the host is to do for a command, all of whose memory is there. Nil: nothing is left to do.
  private mutating func examine(
    _ command: borrowing NVMeCommand, _ record: CommandRecord
  ) throws(Refusal) -> InFlightCommand? {
    guard let opcode = NVMeOpcode(rawValue: command.opcode) else { throw Refusal(.invalidOpcode) }
    guard command.fused == 0 else { throw Refusal(.invalidField) }
    let number = command.namespace
    let isOfAll = opcode == .flush && number == .max
    guard isOfAll || number > 0 && number <= UInt32(namespaces.count) else { throw Refusal(.invalidNamespace) }
    let index = isOfAll ? 0 : Int(number) - 1
    let disk = namespaces[index].disk
    switch opcode {
    case .flush:
      if !isOfAll, disk.file.isReadOnly { return nil }
      var flush = InFlightCommand(record, index, DiskOperation(kind: .flush), nothing())
      flush.isOfAll = isOfAll
      return flush
    case .read:
      let (position, count) = try transfer(command, index)
      let memory = try data(of: command, count: count, for: .write).seal(iotlb, fault: nil)
      return InFlightCommand(record, index, DiskOperation(kind: .read, position: position, count: count), memory)
    case .write:
      let (position, count) = try transfer(command, index)
      try checkWritable(disk)
      let memory = try data(of: command, count: count, for: .read).seal(iotlb, fault: nil)
      let kind = DiskOperation.Kind.write(durable: isDurable(command, disk))
      return InFlightCommand(record, index, DiskOperation(kind: kind, position: position, count: count), memory)
    case .writeZeroes:
      let (position, count) = try range(command.startingBlock, command.blockCount, index)
      try checkWritable(disk)
      let operation = DiskOperation(kind: .ranges(.writeZeroes), position: position, count: 1)
      var zeroes = InFlightCommand(record, index, operation, nothing())
      zeroes.zeroes = count
      zeroes.mayUnmap = command.dwords[12] & NVMeCommand.deallocate != 0 && disk.canDiscard
      zeroes.isDurable = isDurable(command, disk)
      return zeroes
    case .datasetManagement: return try manage(command, record, index)
    case .compare:
      try compare(command, index)
      return nil
    }
  }

  /// Memory of a command without data.
  private mutating func nothing() -> ChainMemory {
    var list = pool.take()
    list.clear()
    return list.seal(iotlb, fault: nil)
  }

  /// Where the blocks of a command are, and how many bytes.
  private func range(
    _ first: UInt64, _ blocks: UInt64, _ index: Int
  ) throws(Refusal) -> (position: UInt64, count: UInt64) {
    let all = namespaces[index].blockCount
    let size = UInt64(namespaces[index].disk.blockSize)
    guard first <= all, blocks <= all - first else { throw Refusal(.lbaOutOfRange) }
    return (first * size, blocks * size)
  }

  private func transfer(_ command: borrowing NVMeCommand, _ index: Int) throws(Refusal) -> (UInt64, Int) {
    guard command.blockCount * UInt64(namespaces[index].disk.blockSize) <= UInt64(options.maxTransfer) else {
      throw Refusal(.invalidField)
    }
    let (position, count) = try range(command.startingBlock, command.blockCount, index)
    return (position, Int(count))
  }

  /// FUA, or no volatile write cache.
  private func isDurable(_ command: borrowing NVMeCommand, _ disk: BlockDisk) -> Bool {
    command.dwords[12] & NVMeCommand.forceUnitAccess != 0 || !disk.cache.isWriteback
  }

  private func checkWritable(_ disk: BlockDisk) throws(Refusal) {
    if disk.file.isReadOnly { throw Refusal(.writeProtected) }
  }

  /// Dataset management: ranges whose contents are no longer needed. Other attributes are hints, of which nothing
  /// follows.
  private mutating func manage(
    _ command: borrowing NVMeCommand, _ record: CommandRecord, _ index: Int
  ) throws(Refusal) -> InFlightCommand? {
    let disk = namespaces[index].disk
    guard disk.canDiscard || disk.file.isReadOnly else { throw Refusal(.invalidOpcode) }
    let isDeallocate = command.dwords[11] & NVMeCommand.attributeDeallocate != 0
    if isDeallocate { try checkWritable(disk) }
    let n = Int(command.dwords[10] & 0xff) + 1
    let list = try data(of: command, count: n * NVMeRange.byteCount, for: .read)
    let request = InFlightCommand(
      record, index, DiskOperation(kind: .ranges(.discard), count: n), list.seal(iotlb, fault: nil))
    // All of them before the first is done.
    let isWell = (0..<n).allSatisfy { request.range($0, of: disk) != nil }
    guard isWell, isDeallocate else {
      release(request.memory, filled: 0)
      if !isWell { throw Refusal(.lbaOutOfRange) }
      return nil
    }
    return request
  }

  /// Compares blocks with memory, the controller waiting: a rare command.
  private mutating func compare(_ command: borrowing NVMeCommand, _ index: Int) throws(Refusal) {
    let (position, count) = try transfer(command, index)
    let disk = namespaces[index].disk
    let memory = try data(of: command, count: count, for: .read).seal(iotlb, fault: nil)
    letGo()
    var status = NVMeStatus.success
    do throws(HostError) {
      var done = 0
      while done < count, status.isSuccess {
        let there = try disk.file.bytes(at: position + UInt64(done), count: min(count - done, Self.comparedAtOnce))
        guard !there.isEmpty else {
          disk.endedEarly(position + UInt64(done))
          status = .unrecoveredReadError
          break
        }
        var given = [UInt8](repeating: 0, count: there.count)
        var span = given.mutableSpan
        _ = memory.readable.copy(from: done, into: &span)
        if given != there { status = .compareFailure }
        done += there.count
      }
    } catch {
      disk.faults.report("\(error)")
      status = .unrecoveredReadError
    }
    takeHold()
    release(memory, filled: 0)
    guard status.isSuccess else { throw Refusal(status) }
    logs.count(read: count)
  }

  private static var comparedAtOnce: Int { 1 << 16 }
}

extension InFlightCommand {
  /// A range of a write zeroes, or of a dataset management as its memory has it now; nil: it is not on the disk. The
  /// driver may change it at any time: what is done is what is checked here.
  func range(_ i: Int, of disk: BlockDisk) -> DiskRange? {
    guard case .ranges(let action) = transfer.operation.kind else { return nil }
    if action == .writeZeroes {
      return DiskRange(position: transfer.operation.position, count: zeroes, mayUnmap: mayUnmap)
    }
    guard let words = memory.readable.read(UInt64.self, at: NVMeRange.byteCount * i),
      let first = memory.readable.read(UInt64.self, at: NVMeRange.byteCount * i + 8)
    else { return nil }
    let size = UInt64(disk.blockSize)
    let (all, count) = ((disk.sectorCount << 9) / size, words >> 32)
    guard first <= all, count <= all - first else { return nil }
    return DiskRange(position: first * size, count: count * size, mayUnmap: true)
  }
}
