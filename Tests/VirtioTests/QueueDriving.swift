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
  /// A ring behind an IOMMU, and the space that is one.
  static func platform(_ packed: Bool, size: UInt16 = 8, eventIndex: Bool = true) throws -> (RingRig, PagedSpace) {
    let rig = try RingRig(RingCase(packed: packed, size: size, eventIndex: eventIndex, path: .platform))
    return (rig, try #require(rig.paged))
  }

  /// Writes descriptors of a split ring, from number 0 on, and those of an indirect table; makes the head available.
  /// Each: address, length, flags, next.
  func offer(
    head: UInt16 = 0, _ descriptors: [(DMAAddress, UInt32, UInt16, UInt16)],
    table: [(DMAAddress, UInt32, UInt16, UInt16)] = []
  ) {
    for (i, one) in descriptors.enumerated() {
      split.setDescriptor(i, address: one.0, length: one.1, flags: one.2, next: one.3)
    }
    for (i, one) in table.enumerated() {
      split.setDescriptor(at: tables + 16 * i, address: one.0, length: one.1, flags: one.2, next: one.3)
    }
    split.offer(head)
    split.publish()
  }

  /// The same for a packed ring. Each: address, length, flags.
  func put(id: UInt16 = 0, _ descriptors: [(DMAAddress, UInt32, UInt16)], table: [(DMAAddress, UInt32, UInt16)] = []) {
    for (i, one) in table.enumerated() {
      packed.setDescriptor(at: tables + 16 * i, address: one.0, length: one.1, id: id, flags: one.2)
    }
    for one in descriptors { packed.put(address: one.0, length: one.1, id: id, flags: one.2) }
  }

  /// Makes one buffer available.
  @discardableResult func offer(_ address: DMAAddress, _ length: UInt32, writable: Bool = false) -> UInt16 {
    let id = ring.post([LiteralDescriptor(address, length, writable: writable)])
    ring.publish()
    return id
  }

  /// One round of a new queue.
  func served(fill: UInt8 = 0xAB, status: UInt8? = nil) throws -> Served {
    var queue = try makeQueue()
    return try queue.serve(fill: fill, status: status)
  }

  /// What ends a new queue in its first round.
  func queueError() throws -> QueueError? {
    var queue = try makeQueue()
    return queue.error()
  }

  var split: LiteralSplitRing {
    guard let ring = ring as? LiteralSplitRing else { preconditionFailure("the ring is not a literal split one") }
    return ring
  }
  var packed: LiteralPackedRing {
    guard let ring = ring as? LiteralPackedRing else { preconditionFailure("the ring is not a literal packed one") }
    return ring
  }
}
