import DMA
import Testing
import VirtioTestKit

@testable import Virtio

@Suite("What chains in flight may hold") struct HoldBudgetTests {
  /// A ring of 64 descriptors that all name one indirect table of `count` pieces, each on its own.
  private func crowded(_ count: Int) throws -> (GuestMemory, LiteralMemory, QueueLayout) {
    let memory = try GuestMemory(byteCount: 4 << 20)
    let literal = LiteralMemory(memory)
    let (layout, _) = literalLayout(size: 64, packed: false, at: 0x1000)
    let table: UInt64 = 1 << 20
    func descriptor(_ address: UInt64, _ length: UInt32, _ flags: UInt16, _ next: UInt16) -> [UInt8] {
      address.bytes + length.bytes + flags.bytes + next.bytes
    }
    var bytes: [UInt8] = []
    for i in 0..<count { bytes += descriptor(3 << 20 + UInt64(i % 256) * 16, 1, i == count - 1 ? 2 : 1, UInt16(i + 1)) }
    literal.write(bytes, at: DMAAddress(table))
    for i in 0..<64 as Range<UInt64> {
      literal.write(descriptor(table, UInt32(16 * count), 4, 0), at: layout.descriptorArea + 16 * Int(i))
      literal.write([UInt8(i), 0], at: layout.driverArea + 4 + 2 * Int(i))
    }
    literal.write([64, 0], at: layout.driverArea + 2)
    return (memory, literal, layout)
  }

  @Test(
    "Long chains are taken as far as they hold no more than their queue may, one at least; the others when some have ended, and none is lost",
    // pieces of a chain, and how many such chains may be in flight
    arguments: [(20, 64), (400, 64), (2000, 16), (8000, 4), (32000, 1)])
  func bounded(_ count: Int, _ room: Int) throws {
    let (memory, literal, layout) = try crowded(count)
    var queue = try Virtqueue(
      index: 0, layout: layout, features: [.version1, .indirectDescriptors], in: PhysicalSpace(memory))
    var chains = SlotTable<DescriptorChain>(capacity: 64)
    var held: [Int] = []
    var done = 0
    while done < 64 {
      // As many rounds as the queue asks for: a round has a bound of its own.
      var rounds = 0
      var hasMore = true
      while hasMore, rounds < 1000 {
        rounds += 1
        try queue.beginRound()
        while let chain = try queue.next() {
          #expect(chain.readable.segmentCount == count - 1)
          held.append(chains.insert(chain))
        }
        hasMore = queue.armKick()
        queue.endRound()
      }
      // A wait that nothing but an end of a chain ends: no more rounds for what is available.
      #expect(!hasMore && held.count == min(room, 64 - done))
      try queue.beginRound()
      guard let chain = chains.remove(held.removeFirst()) else { return #expect(Bool(false)) }
      queue.complete(chain, written: 1)
      done += 1
      let hasRoom = queue.armKick()
      if done + held.count < 64 { #expect(hasRoom) }
      queue.endRound()
    }
    #expect(literal.le16(at: layout.deviceArea + 2) == 64)
  }

  @Test("What a chain named counts where translations serve one chain only")
  func notes() throws {
    #expect(HoldBudget.weight(capacity: 32, named: 0) == 0)
    #expect(HoldBudget.weight(capacity: 32, named: 33) == 65)
    var budget = HoldBudget()
    budget.take(HoldBudget.limit)
    #expect(budget.isSpent && !budget.hasRoom(for: 65) && budget.hasRoom(for: 0))
    budget.wait()
    budget.give(HoldBudget.limit)
    #expect(!budget.isSpent && !budget.isWaitedFor)
  }
}
