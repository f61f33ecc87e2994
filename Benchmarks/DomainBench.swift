import ArgumentParser
import DMA
import Foundation
import VirtioDevices
import VirtioDrivers
import VirtioTestKit

/// A domain alone: what mapping, unmapping and looking up cost with few mappings and with many.
struct DomainBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommu",
    abstract: "Measures an IOMMU domain: map and unmap pairs, walks and hits, by the number of mappings.",
    discussion: """
      Mappings are pages with a hole after each. A pair maps and unmaps a page in a hole; one endpoint is attached, whose queue \
      sleeps. Pairs go to the domain, and as two requests of virtio-iommu's driver to the device, in one thread. A walk looks a page \
      up in the mappings; a hit is a queue's look-up of one of 64 pages, anywhere among them, that it has seen. Times are medians over the rounds, in \
      nanoseconds.
      """)

  @Option(help: "Rounds.") var rounds = 21
  @Option(help: "Numbers of mappings, with commas.") var mappings = "1,64,4096,65536,1048576"
  @Flag(help: "A line of JSON a row.") var json = false

  mutating func run() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    var table = Table(["mappings", "pair ns", "pairs/s", "device pair ns", "device pairs/s", "walk ns", "hit ns"], json: json)
    var hits: [Int: Double] = [:]
    for count in try numbers(mappings, "--mappings") {
      let row = try measure(memory, UInt64(count))
      let device = try measureDevice(UInt64(count))
      hits[count] = row.hit
      table.add(
        [
          "\(count)", row.pair.text(0), (1e9 / row.pair).text(0), device.text(0), (1e9 / device).text(0), row.walk.text(0), row.hit.text(1),
        ],
        json: [
          ("mappings", .integer(count)), ("pair_ns", .number(row.pair)), ("device_pair_ns", .number(device)), ("walk_ns", .number(row.walk)),
          ("hit_ns", .number(row.hit)),
        ])
    }
    table.finish()
    if let few = hits[64], let many = hits[65_536] {
      if json { print("{\"hit_growth\":\((many / few).text(3))}") } else { print("a hit among 65536 mappings takes \((many / few).text(2)) times one among 64") }
    }
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
    for n in 0..<count { try driver.map(DMAAddress(n << 13), byteCount: 4096, to: GuestAddress((n % 256) << 12), permissions: .readWrite, in: 1) }
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

  private func measure(_ memory: GuestMemory, _ count: UInt64) throws -> (pair: Double, walk: Double, hit: Double) {
    let domain = Domain(memory, maxMappings: 1 << 22)
    // As scattered as a driver's allocator leaves them: every other page, in an order that jumps.
    for n in 0..<count {
      let at = n &* 7919 % count
      try? domain.map(DMAAddress(at << 13), byteCount: 4096, to: GuestAddress((at % 256) << 12), permissions: .readWrite)
    }
    for n in 0..<count where !domain.isMapped(from: DMAAddress(n << 13), through: DMAAddress(n << 13)) {
      try domain.map(DMAAddress(n << 13), byteCount: 4096, to: GuestAddress((n % 256) << 12), permissions: .readWrite)
    }
    let endpoint = EndpointSpace(memory, requester: RequesterID(rawValue: 8), isOpen: true)
    domain.attach(endpoint)
    var cache = IOTLB(endpoint)
    var pool = SegmentPool()
    var pairs: [Double] = [], walks: [Double] = [], hits: [Double] = []
    var random = Scatter(count)
    let hot = (0..<min(64, count)).map { count <= 64 ? $0 << 13 : random.next() << 13 }
    let laps = 32_768 / hot.count
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
      for _ in 0..<n { _ = try domain.lookUp(DMAAddress(random.next() << 13), for: .read, by: endpoint.requester) }
      walks.append(Double(now() - start) / Double(n))
      // Pages anywhere in the domain, seen once before.
      _ = cache.beginRound()
      var taken: UInt64 = 0
      for lap in 0...laps {
        if lap == 1 { taken = now() }
        for page in hot {
          var list = pool.take()
          try cache.resolve(DMAAddress(page), count: 64, for: .read, into: &list)
          pool.give(back: list)
        }
      }
      hits.append(Double(now() - taken) / Double(laps * hot.count))
      cache.endRound()
    }
    return (median(pairs), median(walks), median(hits))
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
