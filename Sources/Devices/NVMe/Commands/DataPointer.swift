import DMA

/// From a command's data pointer to memory: all of it before a byte is moved, so that a command whose memory cannot be
/// reached touches none.
extension ControllerWorker {
  /// Most descriptors of a command's SGL, all segments together: it may lead in a circle.
  static var maxDescriptors: Int { 8192 }

  /// The memory of `count` bytes of data: device-readable for a command that is given data, device-writable for one
  /// that yields some.
  mutating func data(
    of command: borrowing NVMeCommand, count: Int, for access: DMAAccess, isAdmin: Bool = false
  ) throws(Refusal) -> SegmentList {
    guard count <= options.maxTransfer else { throw Refusal(.invalidField) }
    var list = pool.take()
    list.clear()
    if access == .write { list.beginWritable() }
    switch command.dataPointerType {
    case 0: try addPages(command.pointer1, command.pointer2, count, access, &list)
    // Admin commands have PRPs only over PCI Express (4.4).
    case 1 where options.offersSGLs && !isAdmin, 2 where options.offersSGLs && !isAdmin:
      try addDescriptors(SGLDescriptor(command.pointer1, command.pointer2), count, access, &list)
    default: throw Refusal(.invalidField)
    }
    guard !list.isFull else { throw Refusal(.invalidDescriptorCount) }
    try reaching { iotlb throws(DMAInterruption) in try iotlb.fetch(list) }
    return list
  }

  /// `count` bytes of a list that says where data is, to be read at once: the one place where such a list is reached. To
  /// be given back to the pool.
  private mutating func table(at address: UInt64, count: Int) throws(Refusal) -> SegmentList {
    var table = pool.take()
    table.clear()
    try add(address, count, .read, &table)
    try reaching { iotlb throws(DMAInterruption) in try iotlb.fetch(table) }
    return table
  }

  /// A piece of memory that does not wrap, appended. What is read may come with the list's fetch only.
  private mutating func add(
    _ address: UInt64, _ count: Int, _ access: DMAAccess, _ list: inout SegmentList
  ) throws(Refusal) {
    try reaching { iotlb throws(DMAInterruption) in
      try iotlb.gather(DMAAddress(address), count: count, for: access, into: &list)
    }
  }

  private mutating func reaching(_ body: (inout IOTLB) throws(DMAInterruption) -> Void) throws(Refusal) {
    do throws(DMAInterruption) {
      try body(&iotlb)
    } catch {
      // A function on a bus never has to ask for a translation: there is nothing to wait for.
      if case .fault(let fault) = error { iotlb.space.report(fault) }
      throw Refusal(.dataTransferError)
    }
  }

  // MARK: PRPs (4.3)

  private mutating func addPages(
    _ first: UInt64, _ second: UInt64, _ count: Int, _ access: DMAAccess, _ list: inout SegmentList
  ) throws(Refusal) {
    let mask = UInt64(pageSize - 1)
    guard first & 3 == 0 else { throw Refusal(.prpOffsetInvalid) }
    let lead = min(count, pageSize - Int(first & mask))
    try add(first, lead, access, &list)
    var left = count - lead
    guard left > 0 else { return }
    guard left > pageSize else {
      guard second & mask == 0 else { throw Refusal(.prpOffsetInvalid) }
      return try add(second, left, access, &list)
    }
    guard second & 7 == 0 else { throw Refusal(.prpOffsetInvalid) }
    var at = second
    while left > 0 {
      let room = (pageSize - Int(at & mask)) / 8
      let needed = (left + pageSize - 1) / pageSize
      // What does not fit goes on where the page's last entry says: such a page but the first has more entries than
      // that one.
      let goesOn = needed > room
      let entries = goesOn ? room : needed
      let table = try table(at: at, count: entries * 8)
      let view = table.readable
      // Pages that follow each other are one piece.
      var (start, length) = (UInt64(0), 0)
      for i in 0..<(goesOn ? entries - 1 : entries) {
        guard let page = view.read(UInt64.self, at: 8 * i), page & mask == 0 else { throw Refusal(.prpOffsetInvalid) }
        let n = min(left, pageSize)
        if length > 0, page == start &+ UInt64(length), page > start {
          length += n
        } else {
          if length > 0 { try add(start, length, access, &list) }
          (start, length) = (page, n)
        }
        left -= n
      }
      if length > 0 { try add(start, length, access, &list) }
      if goesOn {
        guard let next = view.read(UInt64.self, at: 8 * (entries - 1)), next & mask == 0 else {
          throw Refusal(.prpOffsetInvalid)
        }
        at = next
      }
      pool.give(back: table)
    }
  }

  // MARK: SGLs (4.4)

  private mutating func addDescriptors(
    _ first: SGLDescriptor, _ count: Int, _ access: DMAAccess, _ list: inout SegmentList
  ) throws(Refusal) {
    var left = count
    var budget = Self.maxDescriptors
    var segment = first
    var kind = first.kind
    if kind == .dataBlock {
      try addBlock(first, &left, access, &list)
      kind = nil
    } else if kind == nil {
      throw Refusal(.descriptorTypeInvalid)
    }
    while let current = kind {
      guard segment.length > 0, segment.length % UInt32(SGLDescriptor.byteCount) == 0 else {
        throw Refusal(.invalidSegmentDescriptor)
      }
      let n = Int(segment.length) / SGLDescriptor.byteCount
      budget -= n
      guard budget >= 0 else { throw Refusal(.invalidDescriptorCount) }
      let table = try table(at: segment.address, count: n * SGLDescriptor.byteCount)
      let view = table.readable
      kind = nil
      for i in 0..<n {
        guard let low = view.read(UInt64.self, at: 16 * i), let high = view.read(UInt64.self, at: 16 * i + 8) else {
          throw Refusal(.dataTransferError)
        }
        let descriptor = SGLDescriptor(low, high)
        switch descriptor.kind {
        case nil: throw Refusal(.descriptorTypeInvalid)
        case .dataBlock: try addBlock(descriptor, &left, access, &list)
        case let next?:
          guard i == n - 1, current == .segment else { throw Refusal(.invalidDescriptorCount) }
          segment = descriptor
          kind = next
        }
      }
      // A segment that is not the last says where the next is.
      guard current == .lastSegment || kind != nil else { throw Refusal(.invalidSegmentDescriptor) }
      pool.give(back: table)
    }
    guard left == 0 else { throw Refusal(.dataLengthInvalid) }
  }

  private mutating func addBlock(
    _ block: SGLDescriptor, _ left: inout Int, _ access: DMAAccess, _ list: inout SegmentList
  ) throws(Refusal) {
    guard block.length <= left else { throw Refusal(.dataLengthInvalid) }
    try add(block.address, Int(block.length), access, &list)
    left -= Int(block.length)
  }
}
