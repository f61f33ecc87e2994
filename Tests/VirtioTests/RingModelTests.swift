import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// Random work over every combination of formats and features, against a model that remembers what was posted.
@Suite("Rings against a model") struct RingModelTests {
  /// What the model remembers of a chain.
  struct Posted {
    var read: [UInt8]
    var writable: [(address: DMAAddress, length: Int)]
    var table: Int?
    var number: Int
  }

  final class Model {
    let rig: RingRig
    let harness: DeviceHarness
    var random: SeededGenerator
    var posted: [UInt32: Posted] = [:]
    var freeTables: [Int]
    var cursor = 0
    var number = 0
    var completed = 0
    var lastCompleted = -1

    init(_ rig: RingRig, seed: UInt64, mostHeld: Int) throws {
      self.rig = rig
      random = SeededGenerator(seed)
      freeTables = Array(0..<Int(rig.layout.size))
      harness = try DeviceHarness(
        EchoDevice(seed: seed, mostHeld: mostHeld), features: rig.kind.features, in: rig.remote ?? rig.space)
      try harness.start(0, rig.layout)
    }

    /// A piece of data memory that no chain in flight uses: the area is used round and round and is larger than all of
    /// them.
    func place(_ length: Int) -> DMAAddress {
      if cursor + length > rig.dataBytes { cursor = 0 }
      defer { cursor += length }
      return rig.data + cursor
    }

    func post(most: Int, longest: Int) {
      let wantsTable = rig.kind.indirect && random.chance(1, in: 2)
      let limit = wantsTable ? min(rig.tableCapacity, Int(rig.layout.size)) : min(rig.ring.free, most)
      guard rig.ring.free > 0, limit > 0 else { return }
      let count = Int.random(in: 1...min(limit, most), using: &random)
      let readable = Int.random(in: 0...count, using: &random)
      var chain: [LiteralDescriptor] = []
      var read: [UInt8] = []
      var writable: [(DMAAddress, Int)] = []
      for i in 0..<count {
        // A piece may be empty (R055), and sit at an address that leads nowhere.
        let length = random.chance(1, in: 12) ? 0 : Int.random(in: 1...longest, using: &random)
        let address = length == 0 ? DMAAddress(0xffff_ffff_ffff_fff1) : place(length)
        chain.append(LiteralDescriptor(address, UInt32(length), writable: i >= readable))
        guard length > 0 else { continue }
        if i < readable {
          let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
          rig.literal.write(bytes, at: address)
          read += bytes
        } else {
          rig.literal.write([UInt8](repeating: 0xEE, count: length), at: address)
          writable.append((address, length))
        }
      }
      let table = wantsTable ? freeTables.removeFirst() : nil
      let id = rig.ring.post(chain, table: table.map { rig.tables + $0 * rig.tableCapacity * 16 })
      #expect(posted[UInt32(id)] == nil)
      posted[UInt32(id)] = Posted(read: read, writable: writable, table: table, number: number)
      number += 1
    }

    func take() {
      for used in rig.ring.takeUsed() {
        guard let chain = posted.removeValue(forKey: used.id) else {
          Issue.record("\(used) was never posted, or given back twice")
          continue
        }
        if let table = chain.table { freeTables.append(table) }
        completed += 1
        if rig.kind.inOrder {
          #expect(chain.number == lastCompleted + 1)
          lastCompleted = chain.number
        }
        let room = chain.writable.reduce(0) { $0 + $1.length }
        #expect(Int(used.length) <= room)
        var found: [UInt8] = []
        for (address, length) in chain.writable { found += rig.literal.read(length, at: address) }
        var expected =
          EchoDevice.answer(to: chain.read, count: min(Int(used.length), room))
          + [UInt8](repeating: 0xEE, count: room - min(Int(used.length), room))
        // Where writes are messages the last byte is always sent, in case it is a status. Behind what the device says it
        // has written, its driver may expect nothing.
        if rig.kind.isRemote, Int(used.length) < room {
          found.removeLast()
          expected.removeLast()
        }
        #expect(found == expected)
      }
    }
  }

  @Test(
    "Every chain comes back once, with what the device wrote where its descriptors say",
    arguments: RingCase.matrix + RingCase.matrix.filter { $0.driver == .literal }.map(\.remote))
  func everyCombination(_ kind: RingCase) throws {
    for seed in [UInt64(1), 2] {
      let rig = try RingRig(kind, table: seed == 2, seed: seed)
      let model = try Model(rig, seed: seed, mostHeld: [0, 3, 40][(Int(seed) + Int(kind.size)) % 3])
      for _ in 0..<60 {
        for _ in 0..<Int.random(in: 0...6, using: &model.random) { model.post(most: 9, longest: 300) }
        if rig.ring.publish() { model.harness.kick(0) }
        if model.random.chance(1, in: 3) { model.harness.ready(UInt64.random(in: 1...5, using: &model.random)) }
        if model.random.chance(1, in: 2) { model.take() }
        if model.random.chance(1, in: 40) {
          // Stop and resume: nothing is lost, nothing done twice.
          let state = try #require(model.harness.stop(0))
          try model.harness.start(0, rig.layout, resumingAt: state)
          model.harness.kick(0)
        }
        #expect(model.harness.failures.isEmpty)
      }
      // The device was kicked only when it asked for it. If it forgot to ask, something is left now.
      model.harness.ready(.max)
      model.take()
      model.harness.ready(.max)
      model.take()
      #expect(model.posted.isEmpty)
      #expect(model.completed == model.number && model.number > 0)
      #expect(rig.ring.free == Int(rig.layout.size))
    }
  }

  @Test(
    "Indices wrap at 2^16 and wrap counters toggle",
    arguments: [
      RingCase(packed: false, size: 8), RingCase(packed: false, size: 8, eventIndex: false, driver: .driverQueue),
      RingCase(packed: false, size: 4, inOrder: true, driver: .driverQueue), RingCase(packed: true, size: 7),
      RingCase(packed: true, size: 7, inOrder: true, driver: .driverQueue),
      RingCase(packed: true, size: 8, driver: .driverQueue), RingCase(packed: false, size: 8).remote,
      RingCase(packed: true, size: 7).remote,
    ])
  func wrapAround(_ kind: RingCase) throws {
    // A literal ring takes its time: it starts just before the end.
    let start: UInt16 = kind.driver == .literal && !kind.isPacked ? 65_000 : 0
    let rig = try RingRig(kind, dataBytes: 4096, startingAt: start)
    let harness = try DeviceHarness(EchoDevice(), features: kind.features, in: rig.remote ?? rig.space)
    try harness.start(0, rig.layout, resumingAt: QueueState(available: start, used: start))
    // As a transport does when a queue starts: look once, and ask for kicks.
    harness.kick(0)
    let chain = [LiteralDescriptor(rig.data, 4), LiteralDescriptor(rig.data + 64, 4, writable: true)]
    rig.literal.write([1, 2, 3, 4], at: rig.data)
    var done = 0
    while done < (kind.driver == .literal ? 1_500 : 70_000) {
      var ids: [UInt32] = []
      for _ in 0..<(1 + done % Int(kind.size / 2)) { ids.append(UInt32(rig.ring.post(chain))) }
      let wanted = rig.ring.publish()
      try #require(wanted)
      harness.kick(0)
      let used = rig.ring.takeUsed()
      try #require(used.map(\.id) == ids)
      done += used.count
    }
    #expect(harness.failures.isEmpty)
  }

  @Test(
    "Rings of 32768 descriptors, of 1, and of odd sizes fill to the last descriptor, their pages scattered or not (R043)",
    arguments: [
      RingCase(packed: false, size: 32768), RingCase(packed: false, size: 1), RingCase(packed: true, size: 32768),
      RingCase(packed: true, size: 32767), RingCase(packed: true, size: 1), RingCase(packed: true, size: 3),
      RingCase(packed: false, size: 32768, driver: .driverQueue),
      RingCase(packed: true, size: 32767, driver: .driverQueue),
      RingCase(packed: false, size: 1024, path: .platform), RingCase(packed: true, size: 1000, path: .platform),
    ])
  func fills(_ kind: RingCase) throws {
    let rig = try RingRig(kind, dataBytes: 4096, tableCapacity: 1)
    let harness = try DeviceHarness(EchoDevice(), features: kind.features, in: rig.remote ?? rig.space)
    try harness.start(0, rig.layout)
    for round in 0..<3 {
      var posted = 0
      while rig.ring.free > 0 {
        rig.ring.post([LiteralDescriptor(rig.data + 8 * (posted % 512), 8, writable: true)])
        posted += 1
      }
      #expect(posted == Int(kind.size))
      rig.ring.publish()
      harness.kick(0)
      let used = rig.ring.takeUsed()
      #expect(used.count == posted, "round \(round)")
      #expect(used.allSatisfy { $0.length <= 8 })
      #expect(harness.failures.isEmpty)
    }
    // One chain as long as the ring.
    let long = (0..<Int(kind.size)).map { LiteralDescriptor(rig.data + 8 * ($0 % 512), 1, writable: true) }
    rig.ring.post(long)
    rig.ring.publish()
    harness.kick(0)
    #expect(rig.ring.takeUsed().count == 1)
    #expect(harness.failures.isEmpty)
  }
}
