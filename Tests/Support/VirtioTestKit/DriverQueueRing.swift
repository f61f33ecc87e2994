public import DMA
import DriverDMA
public import Virtio
import VirtioDrivers

/// ``DriverQueue`` behind the literal ring's questions, so that both can be put to the same tests.
public final class DriverQueueRing: LiteralRing {
  public let memory: LiteralMemory
  public let layout: QueueLayout
  private var queue: DriverQueue
  private let tables: DMAAddress
  private let tableCapacity: Int
  public private(set) var errors: [String] = []

  /// - Parameters:
  ///   - space: where the ring's memory is looked up: its pages need not lie together.
  ///   - tables: room for one indirect table of `tableCapacity` descriptors per descriptor of the ring.
  public init(
    _ layout: QueueLayout, features: Features, space: any DMASpace, tables: DMAAddress, tableCapacity: Int,
    in memory: LiteralMemory
  ) {
    self.layout = layout
    self.memory = memory
    self.tables = tables
    self.tableCapacity = tableCapacity
    var iotlb = IOTLB(space)
    _ = iotlb.beginRound()
    let bytes = layout.byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    do {
      let areas = DriverQueueMemory(
        descriptorArea: try iotlb.ring(layout.descriptorArea, count: bytes.descriptor, for: .read),
        driverArea: try iotlb.ring(layout.driverArea, count: bytes.driver, for: .read),
        deviceArea: try iotlb.ring(layout.deviceArea, count: bytes.device, for: .write),
        tables: try iotlb.ring(tables, count: Int(layout.size) * tableCapacity * 16, for: .read), tableAddress: tables,
        tableCapacity: tableCapacity)
      queue = try DriverQueue(layout: layout, features: features, memory: areas)
    } catch {
      preconditionFailure("a test's ring is not mapped: \(error)")
    }
    iotlb.endRound()
  }

  public var free: Int { Int(queue.free) }

  /// Tables are the queue's own; that one is given says that one is wanted.
  public func post(_ chain: [LiteralDescriptor], table: DMAAddress?) -> UInt16 {
    let readable = chain.filter { !$0.isWritable }.map { DriverBuffer($0.address, count: $0.length) }
    let writable = chain.filter(\.isWritable).map { DriverBuffer($0.address, count: $0.length) }
    do {
      return try queue.add(readable: readable.span, writable: writable.span, indirect: table != nil)
    } catch {
      preconditionFailure("a test's chain does not fit: \(error)")
    }
  }

  @discardableResult public func publish() -> Bool { queue.publish() }

  public func takeUsed() -> [LiteralUsed] {
    var result: [LiteralUsed] = []
    do throws(DriverQueueError) {
      while let used = try queue.reap() { result.append(LiteralUsed(id: UInt32(used.id), length: used.written)) }
    } catch {
      errors.append("\(error)")
    }
    return result
  }

  public func refuseCalls() { queue.disarmCall() }
  public func wantCalls() { _ = queue.armCall() }
  public func wantCall(after distance: UInt16) { _ = queue.armCall(after: distance) }
  public var outstanding: Int { Int(queue.outstanding) }
  public var isBroken: Bool { queue.isBroken }
}
