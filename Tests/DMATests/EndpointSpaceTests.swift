import Synchronization
import Testing
import VirtioTestKit

@testable import DMA
@testable import IOMMUInterface

/// What one requester reaches, and what a change of that waits for.
@Suite("Endpoint space") struct EndpointSpaceTests {
  private static let page: UInt64 = 4096
  private let memory: GuestMemory
  private static let me = RequesterID(bus: 1, device: 2, function: 3)

  init() throws { memory = try GuestMemory.numbered(pages: 16) }

  @Test("A requester ID is a bus, a device and a function, and reads as lspci writes it")
  func requester() {
    let id = RequesterID(bus: 0xab, device: 0x1f, function: 7)
    #expect(
      id.rawValue == 0xabff && id.bus == 0xab && id.device == 31 && id.function == 7 && id.description == "ab:1f.7")
    #expect(
      RequesterID(rawValue: 8).description == "00:01.0" && RequesterID(bus: 0, device: 32, function: 8).rawValue == 0)
    #expect(RequesterID(rawValue: 1) < RequesterID(rawValue: 2))
  }

  @Test("Without bus mastering nothing is reached by any route, and no IOMMU hears of it (R039)")
  func gate() throws {
    let domain = Domain(memory)
    try domain.map(0, to: 4096)
    let endpoint = EndpointSpace(memory, requester: Self.me)
    var cache = IOTLB(endpoint)
    for attached in [false, true] {
      if attached { domain.attach(endpoint) }
      #expect(cache.look(0) == .fault(0, .busMasterDisabled))
      endpoint.report(DMAFault(address: DMAAddress(0), access: .read, reason: .busMasterDisabled))
      endpoint.setOpen(true)
      #expect(cache.look(0) == .success(attached ? 2 : 1))
      #expect(endpoint.isOpen)
      endpoint.setOpen(false)
      #expect(cache.look(0) == .fault(0, .busMasterDisabled), "what was remembered is forgotten")
    }
    #expect(domain.faultRecords.isEmpty && endpoint.counts.faults == 2)
  }

  @Test("Each route leads where it says, and a turn takes effect at once, whatever was remembered (R110)")
  func routes() throws {
    let domain = Domain(memory)
    try domain.map(0, to: 5 * Self.page, pages: 2, .read)
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true)
    var awake = IOTLB(endpoint)
    for _ in 0..<3 {
      endpoint.setRoute(.physical)
      #expect(awake.look(4096) == .success(2))
      #expect(awake.look(16 * Self.page) == .fault(16 * Self.page, .unmapped))
      endpoint.setRoute(.translated(domain))
      #expect(awake.look(4096) == .success(7))
      #expect(awake.look(4096, .write) == .fault(4096, .permission, .write))
      #expect(awake.look(2 * Self.page) == .fault(2 * Self.page, .unmapped))
      endpoint.setRoute(.blocked(.stopped))
      #expect(awake.look(4096) == .fault(4096, .stopped))
    }
    let counts = endpoint.counts
    #expect(counts.misses > 0 && counts.faults == 0, "faults are counted when they are reported")
  }

  @Test(
    "A turn and an invalidation wait for rounds under way and for chains in flight, and for nothing younger (R110)",
    arguments: [false, true])
  func drains(turning: Bool) throws {
    let domain = Domain(memory)
    try domain.map(0, to: 4096)
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true)
    domain.attach(endpoint)
    var user = IOTLB(endpoint)
    var other = IOTLB(endpoint)
    _ = user.beginRound()
    #expect(user.byte(0, .read) == .success(2))
    var chain: MappingHold? = user.hold(from: 0, through: 4095)
    user.endRound()
    let generation = endpoint.fence.generation
    let control = WorkThread {
      if turning {
        endpoint.setRoute(.blocked(.stopped))
      } else {
        _ = try? domain.unmap(0)
      }
    }
    while endpoint.fence.generation == generation { control.pause() }
    for _ in 0..<20 { #expect(other.look(0) == .fault(0, turning ? .stopped : .unmapped)) }
    control.pause()
    #expect(!control.isDone, "a chain that uses the mapping is in flight")
    _ = user.beginRound()
    let held = chain.take()
    _ = consume held
    user.endRound()
    #expect(control.join())
  }

  @Test("Memory that goes is not reached any more by any route, and memory that comes is", arguments: [false, true])
  func memoryGoes(translated: Bool) throws {
    let high = UInt64(1) << 32
    let domain = Domain(memory)
    try domain.map(high, to: high)
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true)
    if translated { domain.attach(endpoint) }
    var cache = IOTLB(endpoint)
    for n in 1...3 as ClosedRange<UInt8> {
      #expect(cache.look(high) == .fault(high, .unmapped))
      try memory.add(high, byteCount: 4096)
      memory.write([n], at: GuestAddress(high))
      #expect(cache.look(high) == .success(n))
      try memory.remove(high, byteCount: 4096)
    }
    #expect(cache.look(high) == .fault(high, .unmapped))
  }

  @Test(
    "A fault is told once to whoever translates, with the requester's number, and to nobody by another route (R092)")
  func reports() throws {
    let heard = Mutex<[RequesterID]>([])
    let domain = Domain(memory) { _, requester in heard.withLock { $0.append(requester) } }
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true)
    let fault = DMAFault(address: DMAAddress(77), access: .write, reason: .unmapped)
    endpoint.report(fault)
    endpoint.setRoute(.blocked(.stopped))
    endpoint.report(fault)
    #expect(domain.faultRecords.isEmpty)
    domain.attach(endpoint)
    endpoint.report(fault)
    #expect(domain.faults == [fault] && domain.faultRecords.map(\.requester) == [Self.me] && domain.faultCount == 1)
    domain.detach(endpoint, to: .physical)
    endpoint.requester = RequesterID(rawValue: 9)
    domain.attach(endpoint)
    endpoint.report(fault)
    #expect(domain.faultRecords.map(\.requester) == [Self.me, RequesterID(rawValue: 9)])
    #expect(heard.withLock { $0 } == [Self.me, RequesterID(rawValue: 9)] && endpoint.counts.faults == 4)
  }

  @Test("While routes turn, a queue sees the new one from the moment the turn returns", .timeLimit(.minutes(10)))
  func concurrentTurns() throws {
    let domains = [Domain(memory), Domain(memory)]
    for (i, domain) in domains.enumerated() { try domain.map(0, to: UInt64(i) * Self.page) }
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true)
    domains[0].attach(endpoint)
    // Turn n leads to domain n % 2.
    let begun = SharedCount(), done = SharedCount(), wrong = SharedCount(), looked = SharedCount(), stop = SharedCount()
    let readers = (0..<2).map { _ in
      WorkThread {
        var cache = IOTLB(endpoint)
        while stop.value == 0 {
          _ = cache.beginRound()
          let earliest = done.value
          let found = cache.byte(0, .read)
          let latest = begun.value
          cache.endRound()
          if case .success(let byte) = found, (earliest...latest).contains(where: { UInt8($0 % 2) + 1 == byte }) {
          } else {
            wrong.add()
          }
          looked.add()
        }
      }
    }
    for n in 1...400 {
      begun.add()
      domains[n % 2].attach(endpoint)
      done.add()
      // Both get their turn, however few processors there are.
      if n % 20 == 0 {
        let before = looked.value
        while looked.value < before + 4 { readers[0].pause() }
      }
    }
    stop.add()
    for reader in readers { #expect(reader.join()) }
    #expect(wrong.value == 0 && looked.value > 0)
    #expect(domains[0].endpoints.count + domains[1].endpoints.count == 1)
  }

  @Test("A driver that maps all over the place fills the table, and it works again after an unmap")
  func fullTable() throws {
    let domain = Domain(memory)
    let endpoint = EndpointSpace(memory, requester: Self.me, isOpen: true, maxTableNodes: 8)
    domain.attach(endpoint)
    var cache = IOTLB(endpoint)
    let table = try #require(endpoint.table)
    for n in 0..<UInt64(64) {
      let address = n << 30
      try domain.map(address, to: n % 16 * Self.page, .read)
      #expect(cache.look(address) == .success(UInt8(n % 16 + 1)), "a page that the table has no room for")
    }
    #expect(table.isFull)
    for n in 0..<UInt64(64) { #expect(try domain.unmap(n << 30, through: n << 30 | 4095) == 1) }
    #expect(!table.isFull)
    try domain.map(0, to: 0, .read)
    #expect(cache.look(0) == .success(1) && table.mappings == 1)
  }
}

/// A number that any thread may raise and read.
final class SharedCount: Sendable {
  private let count = Atomic<Int>(0)
  var value: Int { count.load(ordering: .sequentiallyConsistent) }
  func add() { count.add(1, ordering: .sequentiallyConsistent) }
}
