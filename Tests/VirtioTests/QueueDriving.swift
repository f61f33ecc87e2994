import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// What a device saw of a chain.
struct Popped: Equatable {
  var id: UInt16
  var read: [UInt8]
  var room: Int
  var fault: DMAFault?
}

struct Served {
  var chains: [Popped] = []
  var call = false
  var more = false
}

extension Virtqueue {
  /// One round: pops everything, writes `fill` into all that is writable, completes. With `status`, writes that byte
  /// last, as devices do whose requests end in one.
  mutating func serve(fill: UInt8 = 0xAB, status: UInt8? = nil) throws(QueueError) -> Served {
    var served = Served()
    try beginRound()
    disarmKick()
    while let chain = try next() {
      let read = chain.readable.bytes()
      let room = chain.writable.byteCount
      served.chains.append(Popped(id: chain.id, read: read, room: room, fault: chain.fault))
      if room > 0 { _ = chain.writable.copy([UInt8](repeating: fill, count: room).span, to: 0) }
      if let status { _ = chain.writeStatus(status) }
      complete(chain, written: room)
    }
    served.call = takeCall()
    served.more = armKick()
    endRound()
    return served
  }

  /// The error of a round, or nil.
  mutating func error() -> QueueError? {
    defer { endRound() }
    do throws(QueueError) {
      try beginRound()
      while let chain = try next() { complete(chain, written: 0) }
      return nil
    } catch {
      return error
    }
  }
}

extension RingRig {
  /// A ring of the wanted kind where there is another one: the test has failed, and goes on.
  private func otherwise<Ring: LiteralRing>(_ ring: Ring) -> Ring {
    Issue.record("the rig has no \(Ring.self)")
    return ring
  }

  var split: LiteralSplitRing {
    guard let ring = ring as? LiteralSplitRing else { return otherwise(LiteralSplitRing(layout, in: literal)) }
    return ring
  }
  var packed: LiteralPackedRing {
    guard let ring = ring as? LiteralPackedRing else { return otherwise(LiteralPackedRing(layout, in: literal)) }
    return ring
  }
}
