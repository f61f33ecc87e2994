internal import DMA
internal import Virtio

/// Runs a queue over arbitrary memory behind an arbitrary page table: the body of the fuzz targets, and of the tests
/// that replay what they found.
///
/// The bytes: 0 the ring's size · 1 features · 2…33 one byte for each of 32 device pages (bits 0 and 1 permissions,
/// bits 2 to 5 the page of memory) · 34 a page whose translation comes late (bit 7 set) · then the memory's contents,
/// 64 KiB at most. The descriptor area is device page 0, the driver area page 1, the device area page 2.
public enum RingFuzz {
  public static var pages: Int { 32 }
  public static var header: Int { 35 }
  static var memoryPages: Int { 16 }

  /// What a run must never do, in words; nil when all is well.
  public static func run(_ input: [UInt8], packed: Bool) -> String? {
    guard input.count >= header else { return nil }
    let size: UInt16 = packed ? UInt16(input[0]) + 1 : 1 << UInt16(input[0] % 9)
    var features: Features = packed ? [.version1, .ringPacked] : [.version1]
    if input[1] & 1 != 0 { features.insert(.indirectDescriptors) }
    if input[1] & 2 != 0 { features.insert(.eventIndex) }
    if input[1] & 4 != 0 { features.insert(.inOrder) }
    do {
      let memory = try GuestMemory(byteCount: memoryPages * 4096)
      var before = [UInt8](repeating: 0, count: memoryPages * 4096)
      for (i, byte) in input.dropFirst(header).prefix(before.count).enumerated() { before[i] = byte }
      guard memory.copy(before.span, to: GuestAddress(0)) == before.count else { return "memory is shorter than it is" }
      let space = PagedSpace(memory, table: input[1] & 8 != 0)
      var isWritable = [Bool](repeating: false, count: memoryPages)
      for i in 0..<pages {
        let entry = input[2 + i]
        let permissions = DMAPermissions(rawValue: entry & 3)
        if permissions == [] { continue }
        let page = Int(entry >> 2) & 15
        space.map(DMAAddress(UInt64(i) * 4096), byteCount: 4096, to: GuestAddress(UInt64(page) * 4096), permissions)
        if permissions.contains(.write) { isWritable[page] = true }
      }
      let late = input[34] & 0x80 != 0 ? DMAAddress(UInt64(input[34] & 31) * 4096) : nil
      if let late { space.holdBack(late) }
      let layout = QueueLayout(
        size: size, descriptorArea: DMAAddress(0), driverArea: DMAAddress(4096), deviceArea: DMAAddress(8192))
      var queue = try Virtqueue(index: 0, layout: layout, features: features, in: space)
      for round in 0..<3 {
        if let problem = serve(&queue) { return problem }
        if round == 0, let late { space.answer(late) }
      }
      // What is left of the queue does not keep an unmap waiting.
      space.fence.drain()
      let after = memory.bytes(before.count, at: GuestAddress(0))
      for page in 0..<memoryPages where !isWritable[page] {
        if after[page * 4096..<page * 4096 + 4096] != before[page * 4096..<page * 4096 + 4096] {
          return "page \(page) was written without permission"
        }
      }
      return nil
    } catch {
      return "\(error)"
    }
  }

  private static func serve(_ queue: inout Virtqueue) -> String? {
    defer { queue.endRound() }
    do throws(QueueError) {
      try queue.beginRound()
      queue.disarmKick()
      var popped = 0
      while popped < 64, let chain = try queue.next() {
        popped += 1
        if chain.fault != nil, chain.readable.byteCount + chain.writable.byteCount > 0 {
          return "a chain that faulted shows memory"
        }
        if UInt64(chain.readable.byteCount) + UInt64(chain.writable.byteCount) > 1 << 32 {
          return "a chain of more than 4 GiB"
        }
        var bytes = [UInt8](repeating: 0, count: 64)
        var span = bytes.mutableSpan
        let last = max(0, chain.readable.byteCount - 32)
        _ = chain.readable.copy(from: last, into: &span)
        // The first and the last bytes of what may be written.
        let room = chain.writable.byteCount
        _ = chain.writable.copy(bytes.span, to: 0)
        if room > 64 { _ = chain.writable.copy(bytes.span, to: room - 64) }
        _ = chain.writeStatus(1)
        queue.complete(chain, written: room)
      }
      _ = queue.takeCall()
      _ = queue.armKick()
    } catch {
      // The driver's fault, reported as such: the right answer.
    }
    return nil
  }
}
