public import DMA
public import IOMMUInterface
public import Virtio
public import VirtioTestKit

/// Look-ups of a device's queues, by the space that answered: those that queues answered themselves, those that came to
/// the space, and accesses refused.
public typealias LookUps = (
  translated: (hits: UInt64, misses: UInt64, faults: UInt64), physical: (hits: UInt64, misses: UInt64, faults: UInt64)
)

/// A virtio device behind any transport, and what its driver does in most tests.
public protocol QueueRig {
  var memory: GuestMemory { get }
  var interrupts: InterruptLog { get }
  var iommu: PageIOMMU? { get }
  /// What the device is to the IOMMU.
  var requester: RequesterID { get }
  /// Waits for an answer, acknowledging interrupts as the driver of this transport does.
  func waitForAnswer(_ transport: any DriverTransport, _ condition: () -> Bool) -> Bool
  /// Sets DRIVER_OK with queue 0 enabled at a place.
  func start(_ transport: any DriverTransport, _ place: QueuePlace)
}

/// FEATURES_OK did not stay set.
public struct NotNegotiated: Error {}

extension QueueRig {
  /// Goes as far as FEATURES_OK (§3.1.1). Whether it stuck.
  public func negotiate(_ transport: any DriverTransport, _ features: Features) -> Bool {
    transport.status = []
    precondition(transport.status == [], "the device does not come out of its reset")
    transport.status = [.acknowledge]
    transport.status = [.acknowledge, .driver]
    transport.accept(features)
    transport.status = [.acknowledge, .driver, .featuresOK]
    return transport.status.contains(.featuresOK)
  }

  /// Negotiates, and starts queue 0 with a ring in memory of its own.
  public func running(
    _ transport: any DriverTransport, _ features: Features, size: UInt16 = 16, scattered isScattered: Bool,
    driver: RingCase.Driver = .literal
  ) throws(NotNegotiated) -> (QueuePlace, any LiteralRing) {
    guard negotiate(transport, features) else { throw NotNegotiated() }
    let place = place(size, packed: features.contains(.ringPacked), scattered: isScattered)
    let ring = place.ring(features, driver)
    start(transport, place)
    return (place, ring)
  }

  /// Memory for a queue and its buffers: where the device sees it, page by page elsewhere in guest memory if
  /// `isScattered`.
  public func place(_ size: UInt16 = 16, packed: Bool = false, scattered isScattered: Bool) -> QueuePlace {
    QueuePlace(memory, size: size, packed: packed, scattered: isScattered) {
      iommu?.map(requester, $0, byteCount: 4096, to: $1)
    }
  }

  /// A legacy queue's memory, which is physical: one address, the used ring behind the next alignment.
  public func legacyPlace(_ size: UInt16, at base: UInt64 = 0x10_0000, alignment: UInt64 = 4096) -> QueuePlace {
    QueuePlace(
      layout: QueueLayout(legacyAt: base, size: size, alignment: alignment), tables: DMAAddress(0x20_0000),
      data: DMAAddress(0x30_0000), literal: LiteralMemory(memory), space: PhysicalSpace(memory))
  }

  /// Sends bytes through a queue and checks the echo. Whether it came.
  public func echo(
    _ transport: any DriverTransport, _ place: QueuePlace, _ ring: any LiteralRing, queue: Int = 0,
    indirect: Bool = false, seed: UInt8 = 1
  ) -> Bool {
    let sent = (0..<200).map { UInt8(truncatingIfNeeded: $0) &* 3 &+ seed }
    place.literal.write(sent, at: place.data)
    let answer = place.data + 8000
    place.literal.write([UInt8](repeating: 0xee, count: 300), at: answer)
    let chain = [
      LiteralDescriptor(place.data, 120), LiteralDescriptor(place.data + 120, 80),
      LiteralDescriptor(answer, 300, writable: true),
    ]
    guard let used = send(transport, chain, ring, queue: queue, table: indirect ? place.tables : nil) else {
      return false
    }
    return place.literal.read(Int(used.length), at: answer) == EchoDevice.answer(to: sent, count: Int(used.length))
  }

  /// Makes a chain available and waits until it comes back; nil if it does not, or the device needs a reset.
  public func send(
    _ transport: any DriverTransport, _ chain: [LiteralDescriptor], _ ring: any LiteralRing, queue: Int = 0,
    table: DMAAddress? = nil
  ) -> LiteralUsed? {
    ring.wantCalls()
    _ = ring.post(chain, table: table)
    ring.publish()
    transport.notify(queue, data: 0)
    var used: [LiteralUsed] = []
    _ = waitForAnswer(transport) {
      used += ring.takeUsed()
      return !used.isEmpty || transport.status.contains(.needsReset)
    }
    return used.first
  }
}
