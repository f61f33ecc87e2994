import DMA
import Testing
import Virtio
import VirtioEntropy
import VirtioTestKit

@Suite("Which space, and whose") struct SpaceTests {
  @Test("Bit 33 is ACCESS_PLATFORM and bit 34 a packed ring, and neither brings the other (R001, R002)")
  func numbers() {
    #expect(Features.accessPlatform.bits == [33] && Features.ringPacked.bits == [34])
    #expect(Features.accessPlatform.isDisjoint(with: .ringPacked))
  }

  @Test("A device by itself offers no ACCESS_PLATFORM: a transport adds it (R003)")
  func offeredByNobody() {
    #expect(Features.ring.isDisjoint(with: .accessPlatform))
    #expect(EntropyDevice().features.isDisjoint(with: .accessPlatform))
  }

  @Test(
    "The negotiated bit decides and no other does; without it addresses are physical, which is the default (R010, R013, R020)"
  )
  func decision() {
    for bit in 0..<128 where bit != 33 {
      let other = Features(bit: bit)
      #expect(AddressPath(negotiated: other) == .physical)
      #expect(AddressPath(negotiated: other.union(.accessPlatform)) == .platform)
    }
    #expect(AddressPath(negotiated: []) == .physical)
    #expect(AddressPath(negotiated: Features(word: ~(1 << 33))) == .physical)
  }

  /// Ring features one by one and all together.
  static let combinations: [Features] = {
    let each: [Features] = [.indirectDescriptors, .eventIndex, .inOrder, .orderPlatform, .notificationData, .ringReset]
    return [[]] + each + [each.reduce([]) { $0.union($1) }]
  }()

  @Test(
    "ACCESS_PLATFORM goes with every ring feature, and with ORDER_PLATFORM in all four ways (R020, R021)",
    arguments: [false, true], combinations)
  func together(packed: Bool, features: Features) throws {
    for platform in [Features(), .accessPlatform] {
      let rig = try Rig(packed: packed, features.union(platform))
      let (from, to) = (rig.allocate(pages: 2), rig.allocate(pages: 2))
      let table = rig.allocate(pages: 1)
      for n in 0..<40 {
        rig.put([UInt8(n), UInt8(n + 1)], at: from + 4095)
        let indirect = features.contains(.indirectDescriptors) && n % 2 == 1
        let used = rig.run([rig.read(from + 4095, 2), rig.write(to + 4095, 2)], table: indirect ? table : nil)
        #expect(used.map(\.length) == [2])
        #expect(rig.get(2, at: to + 4095) == [UInt8(n), UInt8(n + 1)])
      }
      #expect(rig.harness.failures.isEmpty && rig.space.faults.isEmpty)
    }
  }

  @Test("The same address is different memory in different spaces, for devices side by side (R077, R079)")
  func isolation() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    let address = DMAAddress(0x5000)
    let left = PagedSpace(memory), right = PagedSpace(memory)
    left.map(address, byteCount: 4096, to: GuestAddress(0x8000))
    right.map(address, byteCount: 4096, to: GuestAddress(0x9000))
    var spaces: [(any DMASpace, UInt8)] = [(left, 1), (right, 2), (PhysicalSpace(memory), 3)]
    for (at, value) in [(0x8000, UInt8(1)), (0x9000, 2), (0x5000, 3)] {
      #expect(memory.copy([value].span, to: GuestAddress(UInt64(at))) == 1)
    }
    for turn in 0..<4 {
      for (space, value) in spaces {
        var cache = IOTLB(space)
        _ = cache.beginRound()
        let area = try cache.ring(address, count: 4096, for: .read)
        #expect(UInt8(truncatingIfNeeded: area.load16(at: 0)) == value, "turn \(turn)")
        cache.endRound()
      }
      spaces.reverse()
    }
    left.unmap(address, byteCount: 4096)
    #expect(throws: DMAInterruption.fault(DMAFault(address: address, access: .read, reason: .unmapped))) {
      _ = try left.translate(address, for: .read, waking: nil)
    }
    #expect(throws: Never.self) { _ = try right.translate(address, for: .read, waking: nil) }
  }

  @Test("Memory that comes is reachable at once; memory that goes faults (R033, R069)")
  func hotplug() throws {
    let memory = try GuestMemory(byteCount: 64 << 10)
    let rig = try PlainRig(memory, in: PhysicalSpace(memory))
    let high: UInt64 = 1 << 30
    func run() -> Int {
      let before = rig.device.served
      #expect(rig.run([LiteralDescriptor(DMAAddress(high), 16)]).count == 1)
      return rig.device.served - before
    }
    for _ in 0..<3 {
      #expect(run() == 0)
      try memory.add(high, byteCount: 4096)
      #expect(run() == 1)
      try memory.remove(high, byteCount: 4096)
    }
    #expect(run() == 0 && rig.device.faults.allSatisfy { $0.address == DMAAddress(high) })
  }

  @Test(
    "A look-up walks a few levels however many mappings there are: 65,536 cost nothing like 4,096 times what 16 do (R121)"
  )
  func cost() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    func nanoseconds(mappings: UInt64) throws -> Double {
      let table = TranslationTable()
      let run = try #require(memory.run(at: GuestAddress(0)))
      for n in 0..<mappings {
        let part = try #require(run.part(from: 0, count: 4096, seenFrom: DMAAddress(n << 12), permissions: .read))
        #expect(table.insert(part))
      }
      let clock = ContinuousClock()
      var best = Double.infinity
      for _ in 0..<5 {
        let time = clock.measure {
          for n in 0..<UInt64(20_000) { precondition(table.run(at: DMAAddress((n &* 7919 % mappings) << 12)) != nil) }
        }
        best = min(best, Double(time.components.attoseconds) / 1e9 / 20_000)
      }
      return best
    }
    let few = try nanoseconds(mappings: 16), many = try nanoseconds(mappings: 65_536)
    // Caches and a busy machine make several times of it; looking through them one by one would make thousands.
    #expect(many <= 100 * few, "\(few) ns and \(many) ns")
  }
}
