import DMA
import DriverDMA
import PCI

/// A submission queue with a completion queue of its own, the commands in them and their memory. One thread uses it.
final class NVMeQueuePair {
  private struct Slot {
    var number: UInt64 = 0
    var isUsed = false
    var ranges: [MappedRange] = []
  }
  /// Of the queue pair: 0 is the admin pair.
  let index: Int
  let size: Int
  private let access: any PCIFunctionAccess
  private let mapper: any DMAMapper
  private let submission: DMAMapping
  private let completion: DMAMapping
  /// A page for each command: its PRP list, or its SGL.
  private let lists: DMAMapping
  private let submissionCells: RingMemory
  private let completionCells: RingMemory
  private let listCells: RingMemory
  private var slots: [Slot]
  private var free: [UInt16]
  private var tail = 0
  private var head = 0
  private var phase: UInt32 = 1
  private var isNew = false
  private var lastNumber: UInt64 = 0
  private var ended = FIFO<NVMeCompletion>()
  private let maxSegments: Int
  /// Where its doorbells are, if not in the registers alone.
  var shadow: DriverDoorbells?
  private var lastTail: UInt32 = 0
  /// A circle, on purpose, once the pair was abandoned.
  private var itself: NVMeQueuePair?

  static var listBytes: UInt64 { 4096 }

  init(
    _ access: any PCIFunctionAccess, index: Int, size: Int, maxSegments: Int, mapper: any DMAMapper
  ) throws(NVMeDriverError) {
    self.access = access
    self.index = index
    self.size = size
    self.mapper = mapper
    self.maxSegments = maxSegments
    do throws(DMAError) {
      let submission = try DMAMapping(allocating: UInt64(size * NVMeCommand.byteCount), by: mapper)
      let completion = try DMAMapping(allocating: UInt64(size * 16), by: mapper)
      let lists = try DMAMapping(allocating: UInt64(size) * Self.listBytes, by: mapper)
      func cells(_ mapping: borrowing DMAMapping) throws(DMAError) -> RingMemory {
        guard let cells = mapper.memory.cells(at: mapping.guest, byteCount: Int(mapping.count)) else {
          throw .missing(mapping.guest)
        }
        return cells
      }
      submissionCells = try cells(submission)
      completionCells = try cells(completion)
      listCells = try cells(lists)
      self.submission = submission
      self.completion = completion
      self.lists = lists
    } catch {
      throw .dma(error)
    }
    slots = Array(repeating: Slot(), count: size - 1)
    free = (0..<UInt16(size - 1)).reversed()
  }

  var submissionAddress: DMAAddress { submission.address }
  var completionAddress: DMAAddress { completion.address }
  var outstanding: Int { slots.count - free.count }

  /// Adds a command; the controller sees it after ``publish()``.
  func submit(
    _ command: NVMeCommand, data: Span<GuestSegment>, _ direction: DMADirection, _ format: NVMeDataFormat
  ) throws(NVMeDriverError) -> UInt64 {
    guard let identifier = free.popLast() else { throw .queueFull }
    var command = command
    command.dwords[0] = command.dwords[0] & 0xffff | UInt32(identifier) << 16
    let slot = Int(identifier)
    do throws(NVMeDriverError) {
      try map(slot, data, direction)
      if !slots[slot].ranges.isEmpty {
        switch format {
        case .prp: try writePages(slot, &command)
        case .sgl: writeDescriptors(slot, &command)
        }
      }
    } catch {
      try? unmap(slot)
      free.append(identifier)
      throw error
    }
    for i in 0..<16 {
      submissionCells.store32(command.dwords[i].littleEndian, at: tail * NVMeCommand.byteCount + 4 * i)
    }
    tail = tail + 1 == size ? 0 : tail + 1
    isNew = true
    lastNumber += 1
    slots[slot].number = lastNumber
    slots[slot].isUsed = true
    return lastNumber
  }

  /// Adds a command whose data is a page of the pair's own: to be read with ``page(_:)`` before the next is submitted.
  func submitWithPage(_ command: NVMeCommand) throws(NVMeDriverError) -> (number: UInt64, slot: Int) {
    guard let next = free.last else { throw .queueFull }
    var command = command
    command.pointer1 = listAddress(Int(next))
    let none = InlineArray<0, GuestSegment> { _ in GuestSegment(GuestAddress(0), count: 0) }
    return (try submit(command, data: none.span, .toDevice, .prp), Int(next))
  }

  /// What the controller left in a command's page.
  func page(_ slot: Int) -> [UInt8] {
    (0..<Int(Self.listBytes) / 4).flatMap { i in
      let word = UInt32(littleEndian: listCells.load32(at: slot * Int(Self.listBytes) + 4 * i))
      return (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) }
    }
  }

  /// Rings the doorbell if there is something new.
  func publish() {
    guard isNew else { return }
    isNew = false
    // The commands become visible before the doorbell, to every reader of it.
    RingMemory.fence()
    let old = lastTail
    lastTail = UInt32(tail)
    ring(NVMeRegister.submissionTail(index), 2 * index, from: old, to: lastTail)
  }

  private func ring(_ register: UInt64, _ doorbell: Int, from old: UInt32, to new: UInt32) {
    if index > 0, let shadow, !shadow.write(doorbell, from: old, to: new) { return }
    access.writeBAR(NVMeController.registerBAR, at: register, width: 4, new)
  }

  /// The next command that ended, or nil.
  func reap() throws(NVMeDriverError) -> NVMeCompletion? {
    if let oldest = ended.popFirst() { return oldest }
    return try take()
  }

  /// The end of one command, or nil; others are kept for ``reap()``.
  func reap(_ number: UInt64) throws(NVMeDriverError) -> NVMeCompletion? {
    if let kept = ended.removeFirst(where: { $0.tag.number == number }) { return kept }
    while let next = try take() {
      if next.tag.number == number { return next }
      ended.append(next)
    }
    return nil
  }

  private func take() throws(NVMeDriverError) -> NVMeCompletion? {
    let at = head * 16
    let last = UInt32(littleEndian: completionCells.loadAcquire32(at: at + 12))
    guard last >> 16 & 1 == phase else { return nil }
    let result = UInt32(littleEndian: completionCells.load32(at: at))
    let old = UInt32(head)
    head += 1
    if head == size {
      head = 0
      phase ^= 1
    }
    ring(NVMeRegister.completionHead(index), 2 * index + 1, from: old, to: UInt32(head))
    let identifier = UInt16(truncatingIfNeeded: last)
    let slot = Int(identifier)
    guard slot < slots.count, slots[slot].isUsed else { throw .unexpected(identifier: identifier) }
    slots[slot].isUsed = false
    let tag = NVMeTag(queue: index - 1, number: slots[slot].number)
    let status = NVMeStatus(rawValue: UInt16(truncatingIfNeeded: last >> 17) & 0x7ff)
    var error: NVMeDriverError? = status.isSuccess ? nil : .status(status)
    do throws(NVMeDriverError) { try unmap(slot) } catch let trouble { error = error ?? trouble }
    free.append(identifier)
    return NVMeCompletion(tag: tag, result: result, error: error)
  }

  // MARK: Data

  /// Maps data in pieces that one mapping takes, cut at pages where that is possible.
  private func map(_ slot: Int, _ data: Span<GuestSegment>, _ direction: DMADirection) throws(NVMeDriverError) {
    let most = mapper.maxMappingSize
    for i in data.indices where data[i].count > 0 {
      var address = data[i].address.rawValue
      var left = UInt64(data[i].count)
      while left > 0 {
        var step = min(left, most)
        if step < left {
          let over = (address &+ step) & 4095
          if over < step { step -= over }
        }
        guard slots[slot].ranges.count < maxSegments else { throw .segments(data.count, maximum: maxSegments) }
        slots[slot].ranges.append(
          try rethrowing(mapper.mapRange(GuestAddress(address), count: step, direction), as: NVMeDriverError.dma))
        address &+= step
        left -= step
      }
    }
  }

  private func unmap(_ slot: Int) throws(NVMeDriverError) {
    var trouble: DMAError?
    for range in slots[slot].ranges {
      do throws(DMAError) { try mapper.unmapRange(range) } catch { trouble = error }
    }
    slots[slot].ranges.removeAll(keepingCapacity: true)
    if let trouble { throw .dma(trouble) }
  }

  private func listAddress(_ slot: Int) -> UInt64 { lists.address.rawValue + UInt64(slot) * Self.listBytes }

  private func writePages(_ slot: Int, _ command: inout NVMeCommand) throws(NVMeDriverError) {
    var count = 0
    var second: UInt64 = 0
    let pieces = slots[slot].ranges
    for (i, piece) in pieces.enumerated() {
      var address = piece.address.rawValue
      var left = piece.count
      while left > 0 {
        let offset = address & 4095
        guard count == 0 ? address & 3 == 0 : offset == 0 else { throw .alignment(DMAAddress(address)) }
        let step = min(left, 4096 - offset)
        let isLast = i == pieces.count - 1 && step == left
        guard isLast || offset + step == 4096 else { throw .alignment(DMAAddress(address + step)) }
        if count == 0 {
          command.pointer1 = address
        } else {
          guard count <= Int(Self.listBytes / 8) else { throw .request }
          if count == 1 { second = address }
          listCells.store64(address.littleEndian, at: slot * Int(Self.listBytes) + 8 * (count - 1))
        }
        count += 1
        address &+= step
        left -= step
      }
    }
    command.pointer2 = count > 2 ? listAddress(slot) : second
  }

  private func writeDescriptors(_ slot: Int, _ command: inout NVMeCommand) {
    let pieces = slots[slot].ranges
    command.dataPointerType = 1
    func descriptor(_ piece: MappedRange) -> SGLDescriptor {
      SGLDescriptor(.dataBlock, piece.address.rawValue, UInt32(truncatingIfNeeded: piece.count))
    }
    var first = descriptor(pieces[0])
    if pieces.count > 1 {
      for (i, piece) in pieces.enumerated() {
        let at = slot * Int(Self.listBytes) + SGLDescriptor.byteCount * i
        listCells.store64(descriptor(piece).address.littleEndian, at: at)
        listCells.store64(descriptor(piece).high.littleEndian, at: at + 8)
      }
      first = SGLDescriptor(.lastSegment, listAddress(slot), UInt32(SGLDescriptor.byteCount * pieces.count))
    }
    command.pointer1 = first.address
    command.pointer2 = first.high
  }

  // MARK: Ending

  /// Keeps all memory for ever: the controller may use it still.
  func abandon() { itself = self }

  /// Takes back the data of commands that will never end: the controller no longer uses it.
  func close() throws(NVMeDriverError) {
    var trouble: NVMeDriverError?
    for slot in slots.indices where slots[slot].isUsed {
      slots[slot].isUsed = false
      do throws(NVMeDriverError) { try unmap(slot) } catch { trouble = error }
    }
    if let trouble { throw trouble }
  }
}
