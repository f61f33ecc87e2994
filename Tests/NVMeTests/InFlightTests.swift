import DMA
import MachineKit
import NVMe
import Storage
import Testing
import VirtioTestKit

@Suite(
  "Commands in flight", .timeLimit(.minutes(10)), .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
struct InFlightTests {
  private let data = LiteralDriver.data

  private func ready(read: Int, flush: Int = 0) throws -> (LiteralDriver, SlowDisk) {
    let storage = try SlowDisk(byteCount: 1 << 20, read: read, flush: flush)
    let driver = LiteralDriver.ready(
      try Rig {
        $0.disk.path = storage.path
        $0.disk.engine = .uring
      })
    return (driver, storage)
  }

  /// Far from each other, and from the start, which is read when the image is opened.
  private func block(_ i: Int) -> Int { 512 + i % 7 * 200 + i / 7 * 24 }

  /// Seven reads of a page each, all over the disk.
  private func begin(_ driver: LiteralDriver, from first: Int = 0) -> [UInt16] {
    let all = (first..<first + 7).map { i in
      driver.post(1, 2, namespace: 1, pointer1: data + UInt64(i % 7) * 4096, [(10, UInt32(block(i))), (12, 7)])
    }
    driver.ring(1)
    return all
  }

  private func holds(_ driver: LiteralDriver, _ i: Int, block: Int) -> Bool {
    driver.rig.load(4096, at: data + UInt64(i) * 4096)
      == (0..<4096).map { SlowDisk.byte(at: block * 512 + $0) }
  }

  @Test("Seven reads of slow storage take the time of one, and each gets its own bytes")
  func many() throws {
    let (driver, storage) = try ready(read: 600)
    let begun = ContinuousClock.now
    let identifiers = Set(begin(driver))
    let answers = (0..<7).map { _ in driver.take(1) }
    #expect(begun.duration(to: .now) < .milliseconds(3000), "one after the other they take 4200")
    #expect(Set(answers.compactMap { $0?.identifier }) == identifiers && answers.allSatisfy { $0?.status == 0 })
    for i in 0..<7 { #expect(holds(driver, i, block: block(i))) }
    _ = storage
  }

  @Test("The admin queue answers while I/O commands are in flight")
  func admin() throws {
    let (driver, storage) = try ready(read: 1500)
    _ = begin(driver)
    for _ in 0..<10 { #expect(driver.admin(0x0a, (10, 7))?.status == 0) }
    #expect(!driver.hasAnswer(1))
    for _ in 0..<7 { #expect(driver.take(1)?.status == 0) }
    _ = storage
  }

  @Test("A submission queue is deleted when its commands in flight have ended, and each of them is answered before")
  func deletion() throws {
    let (driver, storage) = try ready(read: 1500)
    _ = begin(driver)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    // All three at once: the queue is as good as gone, and its completion queue is not.
    let deletion = driver.post(0, 0, [(10, 1)])
    let again = driver.post(0, 0, [(10, 1)])
    let other = driver.post(0, 4, [(10, 1)])
    driver.ring(0)
    let (second, third) = (driver.take(0), driver.take(0))
    #expect(second?.identifier == again && second?.status == 0x101)
    #expect(third?.identifier == other && third?.status == 0x10c)
    let last = driver.take(0)
    #expect(last?.identifier == deletion && last?.status == 0)
    var answers: [UInt16] = []
    while driver.hasAnswer(1) { answers.append(driver.take(1)?.status ?? .max) }
    #expect(answers.allSatisfy { $0 == 0 || $0 == 0x008 })
    // Nothing arrives any more.
    driver.rig.store([UInt8](repeating: 0xee, count: 7 * 4096), at: data)
    #expect(driver.admin(4, (10, 1))?.status == 0 && driver.makePair(1) == [0, 0])
    #expect(driver.transfer(2, block: 0, blocks: 1, 0x8_0000) == 0)
    #expect(driver.rig.load(7 * 4096, at: data) == [UInt8](repeating: 0xee, count: 7 * 4096))
    _ = storage
  }

  @Test("Abort says truly whether it ended the command, and comes after that one's own answer if it did")
  func abort() throws {
    let (driver, storage) = try ready(read: 300)
    for round in 0..<3 {
      let victims = begin(driver, from: round * 7)
      #expect(driver.admin(0x08, (10, 1 | 0x7777 << 16))?.result == 1)
      let aborts = victims.prefix(3).map { driver.post(0, 0x08, [(10, 1 | UInt32($0) << 16)]) }
      driver.ring(0)
      var results: [UInt16: UInt32] = [:]
      for _ in aborts {
        let answer = driver.take(0)
        #expect(answer?.status == 0)
        if let answer { results[answer.identifier] = answer.result }
      }
      var statuses: [UInt16: UInt16] = [:]
      for _ in victims {
        let answer = driver.take(1)
        if let answer { statuses[answer.identifier] = answer.status }
      }
      for (abort, victim) in zip(aborts, victims) {
        #expect(statuses[victim] == (results[abort] == 0 ? 0x007 : 0), "round \(round)")
      }
      #expect(victims.dropFirst(3).allSatisfy { statuses[$0] == 0 })
    }
    _ = storage
  }

  @Test("A controller that is disabled is idle when nothing in flight can reach memory any more")
  func disabling() throws {
    let (driver, storage) = try ready(read: 150)
    for round in 0..<4 {
      _ = begin(driver)
      if round % 2 == 0 { #expect(driver.admin(0x0a, (10, 7))?.status == 0) }
      #expect(driver.disable())
      driver.rig.store([UInt8](repeating: 0xee, count: 7 * 4096), at: data)
      #expect(driver.enable() && driver.makePair(1) == [0, 0])
      #expect(driver.transfer(2, block: 0, blocks: 1, 0x8_0000) == 0)
      #expect(driver.rig.load(7 * 4096, at: data) == [UInt8](repeating: 0xee, count: 7 * 4096))
    }
    _ = storage
  }

  @Test("A flush does not hold up reads, nor they it; a volatile cache that is switched off is flushed first")
  func flush() throws {
    let (driver, storage) = try ready(read: 0, flush: 1000)
    let flush = driver.post(1, 0, namespace: 1, [])
    driver.ring(1)
    // Its answer comes first.
    #expect(driver.transfer(2, block: 0, blocks: 8, data) == 0)
    let answer = driver.take(1)
    #expect(answer?.identifier == flush && answer?.status == 0)
    let second = ContinuousClock.now
    #expect(driver.admin(0x09, (10, 6), (11, 0))?.status == 0)
    #expect(second.duration(to: .now) >= .milliseconds(990) && driver.admin(0x0a, (10, 6))?.result == 0)
    _ = storage
  }

  @Test("Queues that are unmapped under commands in flight fail the controller, and their data's pages are let go")
  func unmapped() throws {
    let iommu = PageDomain(of: Rig.requester)
    for at in stride(from: UInt64(0), to: 4 << 20, by: 4096) {
      iommu.map(DMAAddress(at), to: GuestAddress(at), count: 4096, permissions: .readWrite)
    }
    let storage = try SlowDisk(byteCount: 1 << 20, read: 300)
    let rig = try Rig(iommu: iommu.unit) {
      $0.disk.path = storage.path
      $0.disk.engine = .uring
    }
    let driver = LiteralDriver.ready(rig)
    _ = begin(driver)
    #expect(driver.admin(0x0a, (10, 7))?.status == 0)
    // The completion queue goes at once, a page of data when its read has ended.
    iommu.unmap(DMAAddress(0x3_1000), count: 4096)
    iommu.unmap(DMAAddress(data), count: 4096)
    rig.store([UInt8](repeating: 0xee, count: 4096), at: data)
    #expect(rig.interrupts.poll { rig.read32(0x1c) & 2 != 0 })
    #expect(driver.disable() && rig.load(4096, at: data) == [UInt8](repeating: 0xee, count: 4096))
    #expect(!iommu.faults.isEmpty)
    iommu.map(DMAAddress(0x3_1000), to: GuestAddress(0x3_1000), count: 4096, permissions: .readWrite)
    iommu.map(DMAAddress(data), to: GuestAddress(data), count: 4096, permissions: .readWrite)
    #expect(LiteralDriver.ready(rig).transfer(2, block: 0, blocks: 1, data) == 0)
  }
}
