import DMA
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
  var split: LiteralSplitRing {
    guard let ring = ring as? LiteralSplitRing else { fatalError("not a literal split ring") }
    return ring
  }
  var packed: LiteralPackedRing {
    guard let ring = ring as? LiteralPackedRing else { fatalError("not a literal packed ring") }
    return ring
  }
}
