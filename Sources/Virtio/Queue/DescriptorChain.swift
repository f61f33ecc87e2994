public import DMA

/// One buffer that the driver made available: what the device reads, what it may write, and a hold on the mappings behind
/// both (§2.7.4). It can be neither copied nor completed twice; dropping it ends the hold without telling the driver, which
/// is right only when the queue is going away.
public struct DescriptorChain: ~Copyable {
  /// Split: the head descriptor's index. Packed: the buffer ID.
  public let id: UInt16
  /// Packed: slots of the ring that the chain took.
  let slots: UInt16
  /// How many chains the queue had popped before: order, for VIRTIO_F_IN_ORDER.
  let sequence: UInt32
  let record: UInt16
  let list: SegmentList
  let lease: ChainLease
  /// Device-readable memory; empty when ``fault`` is set.
  public var readable: BufferSegments
  /// Device-writable memory; empty when ``fault`` is set.
  public var writable: BufferSegments
  /// Why some of the chain's memory cannot be reached, or nil. Such a chain is not to be acted on: complete it with 0 bytes,
  /// after ``writeStatus(_:)`` if the device's requests end in a status byte.
  public let fault: DMAFault?

  init(id: UInt16, slots: UInt16, sequence: UInt32, record: UInt16, list: consuming SegmentList, lease: consuming ChainLease, fault: DMAFault?) {
    self.id = id
    self.slots = slots
    self.sequence = sequence
    self.record = record
    readable = fault == nil ? list.readable : list.readableNothing
    writable = fault == nil ? list.writable : list.readableNothing
    self.list = list
    self.lease = lease
    self.fault = fault
  }

  /// Writes the last device-writable byte, where a request of many devices has its status: of a chain with a ``fault`` too,
  /// if that byte can be reached. False if it cannot.
  public func writeStatus(_ status: UInt8) -> Bool {
    let all = list.writable
    return all.write(status, at: all.byteCount - 1)
  }
}
