import ArgumentParser
import DMA
import Foundation

/// A domain alone: what mapping, unmapping and looking up cost with few mappings and with many.
struct DomainBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommu",
    abstract: "Measures an IOMMU domain: map and unmap pairs, walks and hits, by the number of mappings.",
    discussion: """
      Mappings are pages with a hole after each. A pair maps and unmaps a page in a hole; one endpoint is attached, whose queue \
      sleeps. A walk looks a page up in the mappings; a hit is a queue's look-up of one of 64 pages that it has seen. Times are \
      medians over the rounds, in nanoseconds.
      """)

  @Option(help: "Rounds.") var rounds = 21
  @Option(help: "Numbers of mappings, with commas.") var mappings = "1,64,4096,65536,1048576"
  @Flag(help: "A line of JSON a row.") var json = false

  mutating func run() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    var table = Table(["mappings", "pair ns", "pairs/s", "walk ns", "hit ns"], json: json)
    for count in try numbers(mappings, "--mappings") {
      let row = try measure(memory, UInt64(count))
      table.add(
        ["\(count)", row.pair.text(0), (1e9 / row.pair).text(0), row.walk.text(0), row.hit.text(1)],
        json: [("mappings", .integer(count)), ("pair_ns", .number(row.pair)), ("walk_ns", .number(row.walk)), ("hit_ns", .number(row.hit))])
    }
    table.finish()
  }

  private func measure(_ memory: GuestMemory, _ count: UInt64) throws -> (pair: Double, walk: Double, hit: Double) {
    let domain = Domain(memory)
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
    var random: UInt64 = 1
    func next() -> UInt64 {
      random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return (random >> 33) % count
    }
    // A limit of 2^20 leaves no room for one more where there are as many already.
    let isFull = count >= UInt64(domain.maxMappings)
    for _ in 0..<rounds {
      let n: UInt64 = 2000
      var start = now()
      for _ in 0..<n {
        let hole = next() << 13 | 4096
        if isFull {
          _ = try domain.unmap(from: DMAAddress(hole - 4096), through: DMAAddress(hole - 1))
          try domain.map(DMAAddress(hole - 4096), byteCount: 4096, to: GuestAddress(0), permissions: .readWrite)
        } else {
          try domain.map(DMAAddress(hole), byteCount: 4096, to: GuestAddress(0), permissions: .readWrite)
          _ = try domain.unmap(from: DMAAddress(hole), through: DMAAddress(hole + 4095))
        }
      }
      pairs.append(Double(now() - start) / Double(n))
      start = now()
      for _ in 0..<n { _ = try domain.lookUp(DMAAddress(next() << 13), for: .read, by: endpoint.requester) }
      walks.append(Double(now() - start) / Double(n))
      // Pages all over the domain, seen once before.
      let step = max(1, count / 64)
      _ = cache.beginRound()
      var taken: UInt64 = 0
      for lap in 0..<33 {
        if lap == 1 { taken = now() }
        for page in 0..<min(64, count) {
          var list = pool.take()
          try cache.resolve(DMAAddress(page * step << 13), count: 64, for: .read, into: &list)
          pool.give(back: list)
        }
      }
      hits.append(Double(now() - taken) / Double(32 * min(64, count)))
      cache.endRound()
    }
    return (median(pairs), median(walks), median(hits))
  }
}
