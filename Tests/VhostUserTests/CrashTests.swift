import DMA
import Testing
import Virtio
import VirtioTestKit

@testable import VhostUserBackend

/// What of a back-end outlives it: the ring, and the record of what is in flight.
private final class Remains {
  let rig: RingRig
  private let record: HostMapping
  /// More than a packed ring of 16 descriptors needs.
  static let recordBytes = 640
  private let headerBytes: Int
  private let areas: [(address: DMAAddress, count: Int)]

  struct Image {
    var areas: [[UInt8]]
    var record: [UInt8]
  }

  init(_ kind: RingCase, startingAt start: UInt16) throws {
    rig = try RingRig(kind, startingAt: start)
    record = try HostMapping(anonymous: 4096)
    headerBytes = kind.isPacked ? 32 : 16
    let counts = rig.layout.byteCounts(packed: kind.isPacked, eventIndex: true)
    areas = [(rig.layout.descriptorArea, counts.descriptor), (rig.layout.deviceArea, counts.device)]
  }

  func recorder() -> any InflightRecorder {
    let cells = record.cells(from: 0, byteCount: 4096)!
    let size = rig.layout.size
    return rig.kind.isPacked
      ? PackedInflight(cells, size: size, capacity: size) : SplitInflight(cells, size: size, capacity: size)
  }

  var recordBytes: [UInt8] { record.bytes(Self.recordBytes) }

  func image(_ record: [UInt8]) -> Image {
    Image(areas: areas.map { rig.literal.read($0.count, at: $0.address) }, record: record)
  }

  func restore(_ image: Image) {
    for (area, bytes) in zip(areas, image.areas) { rig.literal.write(bytes, at: area.address) }
    _ = record.copy(image.record.span, to: 0)
  }

  /// The record between two moments: `count` bytes of its header as they are later.
  func mixed(_ before: [UInt8], _ after: [UInt8], header count: Int) -> [UInt8] {
    Array(after[..<count]) + before[count..<headerBytes] + after[headerBytes...]
  }

  func laterHeader(_ before: [UInt8], _ after: [UInt8]) -> [UInt8] {
    Array(after[..<headerBytes]) + before[headerBytes...]
  }

  /// What a front-end that knows nothing better says about the position.
  func guess(_ start: UInt16) -> QueueState {
    if rig.kind.isPacked { return QueueState(available: start, used: start) }
    return QueueState(available: rig.literal.le16(at: rig.layout.deviceArea + 2), used: nil)
  }
}

/// A recorder whose process dies at one of its moments: before, within or after one of the recorder's steps.
private final class Mortal: InflightRecorder {
  private let inner: any InflightRecorder
  private let remains: Remains
  private var left: Int
  /// What there was when it died.
  private(set) var image: Remains.Image?

  init(_ remains: Remains, momentsToLive: Int) {
    inner = remains.recorder()
    self.remains = remains
    left = momentsToLive
  }

  private func moment(_ record: [UInt8]) {
    left -= 1
    if left == 0 { image = remains.image(record) }
  }

  private func step<T>(_ body: () -> T) -> T {
    let before = remains.recordBytes
    moment(before)
    let result = body()
    let after = remains.recordBytes
    // Entries are written before the header; a packed one's header in two pieces.
    moment(remains.mixed(before, after, header: 0))
    moment(remains.mixed(before, after, header: 16))
    moment(after)
    return result
  }

  var mayHoldChains: Bool { inner.mayHoldChains }

  func resume(at state: QueueState, used: UInt16?, flags: (UInt16) -> UInt16) -> QueueResumption {
    let before = remains.recordBytes
    moment(before)
    let result = inner.resume(at: state, used: used, flags: flags)
    let after = remains.recordBytes
    if before[8] == 1 { moment(remains.laterHeader(before, after)) }
    moment(after)
    return result
  }

  func popped(head: UInt16) -> UInt16 { step { inner.popped(head: head) } }
  func popped(id: UInt16, descriptors: [RingDescriptor]) -> UInt16? {
    step { inner.popped(id: id, descriptors: descriptors) }
  }
  func completing(_ record: UInt16) { step { inner.completing(record) } }
  func published(used: UInt16, wrap: Bool) { step { inner.published(used: used, wrap: wrap) } }
}

/// A driver and the back-ends that die under it, one after the other.
private struct Deaths {
  let remains: Remains
  let start: UInt16
  var random: SeededGenerator
  /// What the driver waits for.
  var outstanding: Set<UInt32> = []
  var posted = 0
  var lives = 0

  init(_ kind: RingCase, seed: UInt64) throws {
    random = SeededGenerator(seed)
    start = UInt16.random(in: 0..<(kind.isPacked ? kind.size : .max), using: &random)
    remains = try Remains(kind, startingAt: start)
  }

  /// The driver reaps, and posts more if more are left.
  private mutating func drive(until target: Int) throws {
    for used in remains.rig.ring.takeUsed() {
      #expect(outstanding.remove(used.id) != nil, "\(used.id) was given back twice, or never made available")
    }
    while posted < target, remains.rig.ring.free >= 3, random.chance(2, in: 3) {
      let count = Int.random(in: 1...3, using: &random)
      let at = remains.rig.data + 64 * (posted % 64)
      let chain = (0..<count).map { LiteralDescriptor(at + 16 * $0, 8, writable: $0 == count - 1) }
      #expect(outstanding.insert(UInt32(remains.rig.ring.post(chain))).inserted)
      posted += 1
    }
    remains.rig.ring.publish()
  }

  /// One back-end's life. True when there is nothing left to do.
  mutating func live(moments: Int, until target: Int) throws -> Bool {
    lives += 1
    try drive(until: target)
    let recorder = Mortal(remains, momentsToLive: moments)
    var queue = try Virtqueue(
      index: 0, layout: remains.rig.layout, features: remains.rig.kind.features, in: remains.rig.space,
      resumingAt: lives == 1 ? QueueState(available: start, used: start) : remains.guess(start), recorder: recorder)
    var chains = SlotTable<DescriptorChain>(capacity: Int(remains.rig.layout.size))
    var held: [Int] = []
    var seen: Set<UInt32> = []
    var rounds = 0
    while recorder.image == nil {
      rounds += 1
      try #require(rounds < 10_000, "what the driver waits for is lost: \(outstanding.sorted())")
      try drive(until: target)
      if posted == target, outstanding.isEmpty { return true }
      try queue.beginRound()
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        if random.chance(1, in: 2), !chains.isFull, let chain = try queue.next() {
          let id = UInt32(chain.id)
          #expect(recorder.image != nil || outstanding.contains(id), "\(id) is done although the driver has it back")
          #expect(seen.insert(id).inserted, "\(id) is done twice at once")
          held.append(chains.insert(chain))
        } else if !held.isEmpty {
          guard let chain = chains.remove(held.remove(at: Int.random(in: held.indices, using: &random))) else {
            continue
          }
          seen.remove(UInt32(chain.id))
          queue.complete(chain, written: 8)
        } else if random.chance(1, in: 4) {
          queue.publish()
        }
      }
      queue.endRound()
    }
    if let image = recorder.image { remains.restore(image) }
    return false
  }
}

@Suite("Back-ends that die", .timeLimit(.minutes(10))) struct CrashTests {
  @Test(
    "Wherever back-ends die, between taking, doing, giving back and writing that down: nothing is lost or given back twice (R126)",
    arguments: [false, true], [false, true])
  func anywhere(packed: Bool, inOrder: Bool) throws {
    for seed in 0..<60 as Range<UInt64> {
      let size: UInt16 = packed ? [5, 8, 13, 16][Int(seed % 4)] : [4, 8, 16, 16][Int(seed % 4)]
      var deaths = try Deaths(
        RingCase(packed: packed, size: size, indirect: false, eventIndex: false, inOrder: inOrder), seed: seed)
      // Few moments at first, so that the beginning of a life is met often; in the end one lives long enough.
      var moments = Int(seed % 7) + 1
      while try !deaths.live(moments: moments, until: 40) {
        moments += Int.random(in: 0...6, using: &deaths.random)
        if deaths.lives > 200 { moments = 100_000 }
        try #require(deaths.lives < 220, "packed \(packed), seed \(seed): never done")
      }
      #expect(deaths.outstanding.isEmpty && deaths.lives > 1, "packed \(packed), in order \(inOrder), seed \(seed)")
    }
  }

  @Test(
    "A record full of chance, changing while it is used, harms nothing but the ring it is about",
    arguments: [false, true])
  func garbage(_ packed: Bool) throws {
    for seed in 0..<120 as Range<UInt64> {
      var random = SeededGenerator(seed)
      let remains = try Remains(RingCase(packed: packed, size: 8, indirect: false, eventIndex: false), startingAt: 0)
      var image = remains.image((0..<Remains.recordBytes).map { _ in UInt8.random(in: 0...255, using: &random) })
      // Believable enough to be used: small numbers, and the right version and size.
      for i in stride(from: 0, to: 600, by: 2) where random.chance(7, in: 8) {
        (image.record[i], image.record[i + 1]) = (image.record[i] % 10, 0)
      }
      image.record.replaceSubrange(8..<12, with: [1, 0, 8, 0])
      remains.restore(image)
      let ring = remains.rig.ring
      for i in 0..<3 {
        let at = remains.rig.data + 64 * i
        ring.post([LiteralDescriptor(at, 8), LiteralDescriptor(at + 8, 8, writable: true)])
      }
      ring.publish()
      var queue = try Virtqueue(
        index: 0, layout: remains.rig.layout, features: remains.rig.kind.features, in: remains.rig.space,
        resumingAt: QueueState(used: nil), recorder: remains.recorder())
      for _ in 0..<8 {
        do throws(QueueError) {
          try queue.beginRound()
          while let chain = try queue.next() { queue.complete(chain, written: 8) }
        } catch {
          #expect(error != .device(""))
        }
        queue.endRound()
        var record = remains.recordBytes
        for _ in 0..<20 { record[Int.random(in: 0..<600, using: &random)] = UInt8.random(in: 0...255, using: &random) }
        remains.restore(remains.image(record))
      }
      // Bounded: a record holds no more chains than it has entries, and a round takes no more than the ring has.
      #expect(queue.statistics.counts.requests < 100)
    }
  }
}
