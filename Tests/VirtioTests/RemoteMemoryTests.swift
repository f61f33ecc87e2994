import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// Rings and buffers that another process has (``RemoteSpace``). What they do otherwise is in ``RingModelTests``.
@Suite("Memory that another process has") struct RemoteMemoryTests {
  @Test(
    "Chains whose copies have no room wait until others have ended; none fails, and none is lost",
    arguments: [false, true])
  func budget(_ packed: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, size: 8))
    let space = RemoteSpace(rig.space, budget: 100_000)
    var queue = try Virtqueue(index: 0, layout: rig.layout, features: rig.kind.features, in: space)
    for i in 0..<6 {
      rig.literal.write([UInt8](repeating: UInt8(i), count: 48_000), at: rig.data + 48_000 * i)
      rig.offer(rig.data + 48_000 * i, 48_000)
    }
    var chains = SlotTable<DescriptorChain>(capacity: 8)
    var done = 0
    while done < 6 {
      var held: [Int] = []
      var more = true
      while more {
        try queue.beginRound()
        while let chain = try queue.next() {
          #expect(chain.fault == nil)
          #expect(chain.readable.bytes() == [UInt8](repeating: UInt8(done + held.count), count: 48_000))
          held.append(chains.insert(chain))
        }
        more = queue.armKick()
        queue.endRound()
      }
      try #require(held.count == 2)
      try queue.beginRound()
      for one in held {
        guard let chain = chains.remove(one) else { return #expect(Bool(false)) }
        queue.complete(chain, written: 0)
        done += 1
      }
      queue.endRound()
    }
    #expect(rig.ring.takeUsed().count == 6)
    #expect(space.faults.isEmpty)
  }

  @Test("A chain of more than any chain's copies may take fails alone")
  func tooLong() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8), dataBytes: 20 << 20)
    let space = RemoteSpace(rig.space)
    var queue = try Virtqueue(index: 0, layout: rig.layout, features: rig.kind.features, in: space)
    rig.offer(rig.data, 17 << 20)
    rig.offer(rig.data, 4)
    let served = try queue.serve()
    #expect(served.chains.map(\.fault?.reason) == [.exhausted, nil])
    #expect(rig.ring.takeUsed().count == 2)
  }

  @Test(
    "Whichever access is refused, the request fails or the queue ends with an error, and the driver is never shown what was not delivered",
    arguments: [false, true])
  func refusals(_ packed: Bool) throws {
    var hasEnded = false
    var hasFailed = false
    for n in 0..<40 {
      let rig = try RingRig(RingCase(packed: packed, size: 8))
      let space = RemoteSpace(rig.space)
      var queue = try Virtqueue(index: 0, layout: rig.layout, features: rig.kind.features, in: space)
      space.refuse(after: n)
      rig.literal.write([1, 2, 3, 4], at: rig.data)
      rig.ring.post([LiteralDescriptor(rig.data, 4), LiteralDescriptor(rig.data + 64, 8, writable: true)])
      rig.ring.publish()
      var error: QueueError?
      var faults = 0
      do throws(QueueError) {
        for _ in 0..<3 {
          let served = try queue.serve(fill: 0xAB)
          faults += served.chains.count { $0.fault != nil }
        }
      } catch let thrown { error = thrown }
      if error != nil { hasEnded = true }
      if faults > 0 { hasFailed = true }
      let used = rig.ring.takeUsed()
      if used.count == 1, faults == 0 {
        #expect(used[0].length == 8)
        #expect(rig.literal.read(8, at: rig.data + 64) == [UInt8](repeating: 0xAB, count: 8))
      }
      // Not before it is refused something.
      #expect(error != nil || faults > 0 || used.count == 1)
      if space.accesses <= n {
        #expect(error == nil && faults == 0)
        break
      }
    }
    #expect(hasEnded && hasFailed)
  }
}
