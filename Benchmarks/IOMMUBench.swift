import ArgumentParser
import DMA
import DriverDMA
import Foundation
import IOMMUInterface
import VirtioDrivers
import VirtioIOMMU
import VirtioTestKit

/// A domain alone: the cost of mapping, unmapping and look-ups with few mappings and with many.
struct IOMMUBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommu",
    abstract: "Measures an IOMMU domain: map and unmap pairs, walks and hits, by the number of mappings.",
    discussion: """
      Mappings are pages with a hole after each. A pair maps and unmaps a page in a hole; one endpoint is attached, \
      and its queue sleeps. Pairs are measured on the domain itself, and as two requests of virtio-iommu's driver to \
      the device, in one thread. A walk looks a page up in the mappings. A hit is a queue's look-up of one of 64 pages \
      that it has cached, at equal distances over the whole domain (strided) or anywhere in it (random, others in each \
      round). Times are medians over the rounds, in nanoseconds; growth is the median of each round's ratio, in rounds \
      that measure both domains.
      """)

  @Option(help: "Rounds.") var rounds = 21
  @Option(help: "Numbers of mappings, separated by commas.") var mappings = "1,64,4096,65536,1048576"
  @Flag(help: "Print JSON: an object for each row, one on each line.") var json = false

  mutating func run() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    var table = Table(
      [
        "mappings", "pair ns", "pairs/s", "device pair ns", "device pairs/s", "walk ns", "strided hit ns",
        "random hit ns",
      ], json: json)
    for count in try numbers(mappings, "--mappings") {
      let row = try measure(memory, UInt64(count))
      let device = try measureDevice(UInt64(count))
      table.add(
        [
          "\(count)", row.pair.text(0), (1e9 / row.pair).text(0), device.text(0), (1e9 / device).text(0),
          row.walk.text(0), row.strided.text(1),
          row.random.text(1),
        ],
        json: [
          ("mappings", .integer(count)), ("pair_ns", .number(row.pair)), ("device_pair_ns", .number(device)),
          ("walk_ns", .number(row.walk)),
          ("strided_hit_ns", .number(row.strided)), ("random_hit_ns", .number(row.random)),
        ])
    }
    table.finish()
    let growth = try measureGrowth(memory, 64, 65_536)
    if json {
      print("{\"strided_hit_growth\":\(growth.strided.text(3)),\"random_hit_growth\":\(growth.random.text(3))}")
    } else {
      print(
        "a hit among 65536 mappings takes \(growth.strided.text(2)) (strided) and \(growth.random.text(2)) (random) times one among 64"
      )
    }
  }

  /// What a hit among `many` mappings takes, in hits among `few`.
  private func measureGrowth(
    _ memory: GuestMemory, _ few: UInt64, _ many: UInt64
  ) throws -> (strided: Double, random: Double) {
    var small = HitLoad(try makeDomain(memory, few), few)
    var large = HitLoad(try makeDomain(memory, many), many)
    var strided: [Double] = [], random: [Double] = []
    for _ in 0..<max(rounds, 101) {
      let base = try small.strided()
      strided.append(try large.strided() / base)
      random.append(try large.random() / (try small.strided()))
    }
    return (median(strided), median(random))
  }

  /// As scattered as a driver's allocator leaves it: every other page, mapped in an order that jumps.
  private func makeDomain(_ memory: GuestMemory, _ count: UInt64) throws -> Domain {
    let domain = Domain(memory, maxMappings: 1 << 22)
    for n in 0..<count {
      let at = n &* 7919 % count
      try? domain.map(
        DMAAddress(at << 13), byteCount: 4096, to: GuestAddress((at % 256) << 12), permissions: .readWrite)
    }
    for n in 0..<count where !domain.isMapped(from: DMAAddress(n << 13), through: DMAAddress(n << 13)) {
      try domain.map(DMAAddress(n << 13), byteCount: 4096, to: GuestAddress((n % 256) << 12), permissions: .readWrite)
    }
    return domain
  }

  /// Pairs through the request queue, in nanoseconds.
  private func measureDevice(_ count: UInt64) throws -> Double {
    let memory = try GuestMemory(byteCount: 1 << 20)
    var options = IOMMUOptions()
    options.maxMappingsPerDomain = 1 << 22
    let device = try IOMMUDevice(memory, options: options)
    let endpoint = EndpointSpace(memory, requester: RequesterID(rawValue: 8), isOpen: true)
    device.adopt(endpoint)
    let driver = try VirtioIOMMUDriver(HarnessTransport(device, memory), memory: memory, area: GuestAddress(0)) { _ in }
    try driver.attach(endpoint.requester, to: 1)
    for n in 0..<count {
      try driver.map(
        DMAAddress(n << 13), byteCount: 4096, to: GuestAddress((n % 256) << 12), permissions: .readWrite, in: 1)
    }
    var pairs: [Double] = []
    var random = Scatter(count)
    for _ in 0..<rounds {
      let n: UInt64 = 1000
      let start = now()
      for _ in 0..<n {
        let hole = DMAAddress(random.next() << 13 | 4096)
        try driver.map(hole, byteCount: 4096, to: GuestAddress(0), permissions: .readWrite, in: 1)
        try driver.unmap(hole, byteCount: 4096, in: 1)
      }
      pairs.append(Double(now() - start) / Double(n))
    }
    return median(pairs)
  }

  private func measure(
    _ memory: GuestMemory, _ count: UInt64
  ) throws -> (pair: Double, walk: Double, strided: Double, random: Double) {
    let domain = try makeDomain(memory, count)
    var load = HitLoad(domain, count)
    var pairs: [Double] = [], walks: [Double] = [], strided: [Double] = [], randoms: [Double] = []
    var random = Scatter(count)
    for _ in 0..<rounds {
      let n: UInt64 = 2000
      var start = now()
      for _ in 0..<n {
        let hole = random.next() << 13 | 4096
        try domain.map(DMAAddress(hole), byteCount: 4096, to: GuestAddress(0), permissions: .readWrite)
        _ = try domain.unmap(from: DMAAddress(hole), through: DMAAddress(hole + 4095))
      }
      pairs.append(Double(now() - start) / Double(n))
      start = now()
      for _ in 0..<n { _ = try domain.lookUp(DMAAddress(random.next() << 13), for: .read, by: load.requester) }
      walks.append(Double(now() - start) / Double(n))
      strided.append(try load.strided())
      randoms.append(try load.random())
    }
    return (median(pairs), median(walks), median(strided), median(randoms))
  }
}

/// A queue that looks up the same 64 pages of a domain again and again.
private struct HitLoad: ~Copyable {
  private let count: UInt64
  private let endpoint: EndpointSpace
  private var cache: IOTLB
  private var pool = SegmentPool()
  private var scatter: Scatter
  private var pages: [UInt64] = []

  init(_ domain: Domain, _ count: UInt64) {
    self.count = count
    endpoint = EndpointSpace(domain.memory, requester: RequesterID(rawValue: 8), isOpen: true)
    domain.attach(endpoint)
    cache = IOTLB(endpoint)
    scatter = Scatter(count)
  }

  var requester: RequesterID { endpoint.requester }

  /// Nanoseconds of a look-up of pages that are the same distance apart.
  mutating func strided() throws -> Double {
    let step = max(1, count / 64)
    pages = (0..<min(64, count)).map { $0 * step << 13 }
    return try time()
  }

  /// Nanoseconds of a look-up of other pages in each call.
  mutating func random() throws -> Double {
    var chosen: Set<UInt64> = []
    pages = []
    while pages.count < min(64, count) {
      let page = scatter.next()
      if chosen.insert(page).inserted { pages.append(page << 13) }
    }
    return try time()
  }

  private mutating func time() throws -> Double {
    _ = cache.beginRound()
    var start: UInt64 = 0
    for lap in 0..<66 {
      // By then every page has been seen.
      if lap == 2 { start = now() }
      for page in pages {
        var list = pool.take()
        try cache.resolve(DMAAddress(page), count: 64, for: .read, into: &list)
        pool.give(back: list)
      }
    }
    let taken = now() - start
    cache.endRound()
    return Double(taken) / Double(64 * pages.count)
  }
}

/// Numbers below a bound that jump about, the same in every run.
private struct Scatter {
  private var state: UInt64 = 1
  private let count: UInt64
  init(_ count: UInt64) { self.count = count }
  mutating func next() -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return (state >> 33) % count
  }
}
