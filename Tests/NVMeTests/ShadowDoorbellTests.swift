import DMA
import MachineKit
import NVMe
import Storage
import Testing
import VirtioTestKit

@Suite("Doorbells in the driver's memory (Doorbell Buffer Config)", .timeLimit(.minutes(10)))
struct ShadowDoorbellTests {
  private let data = LiteralDriver.data
  private static let shadow: UInt64 = 0x6_0000
  private static let eventIndices: UInt64 = 0x6_1000

  /// The driver's side, word by word: a doorbell is written to memory, and rung only where the other buffer says so.
  private final class Ringer {
    let rig: Rig
    var rung = 0
    private var last: [UInt64: UInt32] = [:]
    init(_ rig: Rig) { self.rig = rig }

    func write(_ index: UInt64, _ value: UInt32) {
      let old = UInt16(truncatingIfNeeded: last[index] ?? 0)
      last[index] = value
      rig.store((0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * UInt32($0))) }, at: shadow + 4 * index)
      RingMemory.fence()
      let event = UInt16(truncatingIfNeeded: rig.load32(eventIndices + 4 * index))
      let new = UInt16(truncatingIfNeeded: value)
      guard new &- event &- 1 < new &- old else { return }
      rung += 1
      rig.write32(0x1000 + 4 * index, value)
    }
  }

  private func ready(_ rig: Rig) -> (LiteralDriver, Ringer) {
    let driver = LiteralDriver.ready(rig)
    rig.store([UInt8](repeating: 0, count: 0x2000), at: Self.shadow)
    #expect(driver.admin(0x7c, pointer1: Self.shadow, pointer2: Self.eventIndices)?.status == 0)
    return (driver, Ringer(rig))
  }

  @Test("Commands are taken where the driver rings as it is told to, round after round, and no answer is lost")
  func rings() throws {
    let (driver, ringer) = ready(try Rig())
    var (tail, head) = (UInt32(0), UInt32(0))
    for round in 0..<600 {
      let count = round % 7 + 1
      var posted: Set<UInt16> = []
      for i in 0..<count {
        posted.insert(driver.post(1, 2, namespace: 1, pointer1: data + UInt64(i) * 4096, [(10, UInt32(i)), (12, 7)]))
        tail = (tail + 1) % 8
        ringer.write(2, tail)
      }
      for _ in 0..<count {
        guard let answer = driver.take(1, acknowledging: false) else {
          Issue.record("an answer is lost in round \(round)")
          return
        }
        #expect(answer.status == 0 && posted.remove(answer.identifier) != nil)
        head = (head + 1) % 8
        ringer.write(3, head)
      }
    }
    #expect(ringer.rung > 0 && ringer.rung < 600 * 8)
  }

  @Test("The register alone counts for the admin queue, and for every queue after a reset")
  func registers() throws {
    let rig = try Rig()
    let (driver, _) = ready(rig)
    rig.store([7, 0, 0, 0, 7, 0, 0, 0], at: Self.shadow)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    #expect(driver.disable())
    rig.store([0xff, 0xff], at: Self.shadow + 8)
    #expect(LiteralDriver.ready(rig).transfer(2, block: 0, blocks: 1, data) == 0)
  }

  @Test("Buffers at odd places, and out of memory, are refused, and the registers go on")
  func places() throws {
    let driver = LiteralDriver.ready(try Rig())
    #expect(driver.admin(0x7c, pointer1: Self.shadow + 8, pointer2: Self.eventIndices)?.status == 0x002)
    #expect(driver.admin(0x7c, pointer1: Self.shadow, pointer2: Self.eventIndices + 4)?.status == 0x002)
    #expect(driver.admin(0x7c, pointer1: Self.shadow, pointer2: 0xffff_ffff_ffff_f000)?.status == 0x004)
    #expect(driver.transfer(2, block: 0, blocks: 1, data) == 0)
  }

  @Test("Any value in the buffers harms nobody: a tail past the end is an event, and the next good one is taken")
  func values() throws {
    let rig = try Rig()
    let (driver, ringer) = ready(rig)
    for value in [UInt32(8), .max, 0x8000_0000] {
      ringer.write(2, value)
      rig.write32(0x1008, 0)
      ringer.write(3, value)
      #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    }
    ringer.write(3, 0)
    driver.post(0, 0x0c, [])
    driver.ring(0)
    #expect(driver.take(0)?.result == 0x0001_0100)
    driver.post(1, 2, namespace: 1, pointer1: data, [(12, 0)])
    ringer.write(2, 1)
    rig.write32(0x1008, 1)
    #expect(driver.take(1, acknowledging: false)?.status == 0)
  }

  @Test("Buffers that are unmapped under way make a fatal status and a fault; a reset helps")
  func unmapped() throws {
    let iommu = PageDomain(of: Rig.requester)
    for at in stride(from: UInt64(0), to: 4 << 20, by: 4096) {
      iommu.map(DMAAddress(at), to: GuestAddress(at), count: 4096, permissions: .readWrite)
    }
    let rig = try Rig(iommu: iommu.unit)
    for page in [Self.shadow, Self.eventIndices] {
      let (driver, ringer) = ready(rig)
      driver.post(1, 2, namespace: 1, pointer1: data, [(12, 0)])
      ringer.write(2, 1)
      #expect(driver.take(1, acknowledging: false)?.status == 0)
      let faults = iommu.faults.count
      iommu.unmap(DMAAddress(page), count: 4096)
      rig.store([0xff, 0xff], at: page + 8)
      driver.ring(0)
      rig.write32(0x1008, 1)
      #expect(rig.interrupts.poll { rig.read32(0x1c) & 2 != 0 })
      #expect(iommu.faults.count > faults)
      #expect(driver.disable())
      iommu.map(DMAAddress(page), to: GuestAddress(page), count: 4096, permissions: .readWrite)
    }
    #expect(LiteralDriver.ready(rig).transfer(2, block: 0, blocks: 1, data) == 0)
  }
}
