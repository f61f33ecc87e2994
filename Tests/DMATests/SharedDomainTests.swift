import Testing
import VirtioTestKit

@testable import DMA
@testable import IOMMUInterface

/// One domain, several endpoints; and as many mappings as a driver may have.
@Suite("Domain with endpoints") struct SharedDomainTests {
  private static let page: UInt64 = 4096
  private let memory: GuestMemory

  init() throws { memory = try GuestMemory.numbered(pages: 16) }

  private func endpoints(_ count: UInt16) -> [EndpointSpace] {
    (0..<count).map { EndpointSpace(memory, requester: RequesterID(rawValue: $0), isOpen: true) }
  }

  @Test("Mappings appear to every endpoint, whenever it came, and go for all of them (R148, R159)")
  func shared() throws {
    let domain = Domain(memory)
    try domain.map(0, to: 0, .read)
    let endpoints = endpoints(3)
    for endpoint in endpoints.dropLast() { domain.attach(endpoint) }
    var first = IOTLB(endpoints[0]), second = IOTLB(endpoints[1]), late = IOTLB(endpoints[2])
    #expect(first.look(0) == .success(1) && second.look(0) == .success(1))
    try domain.map(4096, to: 3 * Self.page, .read)
    #expect(first.look(4096) == .success(4) && second.look(4096) == .success(4))
    domain.attach(endpoints[2])
    #expect(late.look(0) == .success(1) && late.look(4096) == .success(4))
    #expect(try domain.unmap(0) == 1)
    #expect(first.look(0) == .fault(0) && second.look(0) == .fault(0) && late.look(0) == .fault(0))
    #expect(late.look(4096) == .success(4))
    domain.detach(endpoints[1], to: .blocked(.stopped))
    domain.removeAll()
    #expect(first.look(4096) == .fault(4096) && late.look(4096) == .fault(4096))
    #expect(domain.endpoints.count == 2)
  }

  @Test("An unmap waits for the last endpoint that uses the page, wherever it is in the list (R159)", arguments: 0..<3)
  func waitsForEach(slow: Int) throws {
    let domain = Domain(memory)
    try domain.map(0, to: 0, .read)
    let endpoints = endpoints(3)
    for endpoint in endpoints { domain.attach(endpoint) }
    var user = IOTLB(endpoints[slow])
    _ = user.beginRound()
    #expect(user.byte(0, .read) == .success(1))
    let generation = endpoints[slow].fence.generation
    let unmap = WorkThread { _ = try? domain.unmap(0) }
    while endpoints[slow].fence.generation == generation { unmap.pause() }
    unmap.pause()
    #expect(!unmap.isDone)
    user.endRound()
    #expect(unmap.join())
  }

  @Test(
    "An endpoint is in one domain: attached to another, it has left the first, and an endpoint that is gone holds nothing up"
  )
  func moves() throws {
    let domains = [Domain(memory), Domain(memory)]
    for (i, domain) in domains.enumerated() { try domain.map(0, to: UInt64(i) * Self.page, .read) }
    let endpoint = EndpointSpace(memory, requester: RequesterID(rawValue: 1), isOpen: true)
    var cache = IOTLB(endpoint)
    domains[0].attach(endpoint)
    domains[0].attach(endpoint)
    #expect(domains[0].endpoints.count == 1 && cache.look(0) == .success(1))
    domains[1].attach(endpoint)
    #expect(domains[0].endpoints.isEmpty && domains[1].endpoints.count == 1 && cache.look(0) == .success(2))
    do {
      let passing = EndpointSpace(memory, requester: RequesterID(rawValue: 2), isOpen: true)
      domains[1].attach(passing)
    }
    #expect(domains[1].endpoints.count == 1)
    #expect(try domains[1].unmap(0, through: .max) == 1)
  }

  @Test(
    "Thousands of mappings in any order do what a table of pages says, error for error",
    arguments: [UInt64(1), .random(in: 2...UInt64.max)])
  func model(seed: UInt64) throws {
    var random = SeededGenerator(seed)
    let domain = Domain(memory, maxMappings: 500)
    let window = 12_000
    /// The number of the mapping on each page, 0: none; and where each begins and ends.
    var pages = [Int](repeating: 0, count: window)
    var extents: [Int: ClosedRange<Int>] = [:]
    var serial = 0
    var most = 0
    for step in 0..<6000 {
      let at = Int.random(in: 0..<window, using: &random)
      // Growing and shrinking take turns, so that chunks are split and joined.
      if random.chance(step / 1500 % 2 == 0 ? 19 : 3, in: 20) {
        let last = min(window - 1, at + Int.random(in: 0...3, using: &random))
        let expected: DomainError? =
          extents.count == 500 ? .full : pages[at...last].contains { $0 != 0 } ? .overlap : nil
        var found: DomainError?
        do throws(DomainError) {
          try domain.map(UInt64(at) * Self.page, to: UInt64(at) * Self.page, pages: UInt64(last - at + 1), .read)
        } catch { found = error }
        guard found == expected else {
          Issue.record("seed \(seed), step \(step): map \(at)...\(last) is \(String(describing: found))")
          return
        }
        if expected == nil {
          serial += 1
          extents[serial] = at...last
          for page in at...last { pages[page] = serial }
        }
      } else {
        let most = random.chance(1, in: 8) ? 2500 : 12
        let last = min(window - 1, at + Int.random(in: 0...most, using: &random))
        let touched = Set(pages[at...last]).subtracting([0])
        let isWhole = touched.allSatisfy { extents[$0]!.lowerBound >= at && extents[$0]!.upperBound <= last }
        let result = Result { () throws(DomainError) in
          try domain.unmap(UInt64(at) * Self.page, through: UInt64(last) * Self.page + 4095)
        }
        guard result == (isWhole ? .success(touched.count) : .failure(.split)) else {
          Issue.record(
            "seed \(seed), step \(step): unmap \(at)...\(last) is \(result), \(touched.count) mappings, whole: \(isWhole)"
          )
          return
        }
        if isWhole {
          for mapping in touched { for page in extents.removeValue(forKey: mapping)! { pages[page] = 0 } }
        }
      }
      most = max(most, extents.count)
      let look = Int.random(in: 0..<window, using: &random)
      let found = try? domain.lookUp(DMAAddress(UInt64(look) * Self.page + 5), for: .read, by: RequesterID(rawValue: 0))
      let expected = extents[pages[look]].map {
        UInt64($0.lowerBound) * Self.page...UInt64($0.upperBound) * Self.page + 4095
      }
      guard found.map({ $0.first.rawValue...$0.last.rawValue }) == expected, domain.mappings == extents.count,
        domain.isMapped(from: DMAAddress(UInt64(look) * Self.page), through: DMAAddress(UInt64(look) * Self.page))
          == (expected != nil)
      else {
        Issue.record("seed \(seed), step \(step): page \(look) is \(String(describing: found))")
        return
      }
    }
    #expect(most == 500, "seed \(seed): the domain never was full")
    #expect(domain.byteCount == UInt64(pages.count { $0 != 0 }) * Self.page)
  }

  @Test("The last mapping a domain takes is its limit's, and a hole makes room for another (R167)")
  func limit() throws {
    let domain = Domain(memory, maxMappings: 1 << 14)
    func map(_ n: UInt64) throws(DomainError) { try domain.map(n * 2 * Self.page, to: 0, .read) }
    // Descending: the worst order for a list.
    for n in (0..<UInt64(1 << 14)).reversed() { try map(n) }
    #expect(throws: DomainError.full) { try map(1 << 14) }
    #expect(try domain.unmap(4096 * 2 * 77) == 1)
    try map(1 << 14)
    #expect(domain.mappings == 1 << 14 && domain.byteCount == 1 << 26)
  }

  @Test(
    "A pair of map and unmap costs nothing like a thousand times more where there are a thousand times more mappings")
  func cost() throws {
    func nanoseconds(_ mappings: UInt64) throws -> Double {
      let domain = Domain(memory)
      for n in 0..<mappings { try domain.map(n << 13, to: 0, .read) }
      let clock = ContinuousClock()
      var best = Double.infinity
      for lap in 0..<5 as Range<UInt64> {
        let time = try clock.measure {
          for i in 0..<UInt64(1000) {
            let address = ((i &* 7919 &+ lap) % mappings) << 13 | 4096
            try domain.map(address, to: 0, .read)
            _ = try domain.unmap(address)
          }
        }
        best = min(best, Double(time.components.attoseconds) / 1e9 / 1000)
      }
      return best
    }
    let few = try nanoseconds(64), many = try nanoseconds(65_536)
    #expect(many <= 30 * few, "\(few) ns and \(many) ns")
  }
}
