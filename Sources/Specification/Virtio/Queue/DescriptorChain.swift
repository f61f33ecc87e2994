public import DMA

/// One buffer that the driver made available: what the device reads, what it may write, and a hold on the mappings
/// behind both (§2.7.4). It can be neither copied nor completed twice. Complete every chain, or leave it
/// (``Virtqueue/leave(_:)``): dropping it ends the hold, but informs neither the driver nor the queue, which then
/// cannot stop.
@frozen public struct DescriptorChain: ~Copyable {
  @usableFromInline let memory: ChainMemory
  /// How many chains the queue had popped before: order, for VIRTIO_F_IN_ORDER.
  @usableFromInline let sequence: UInt32
  /// Split: the head descriptor's index. Packed: the buffer ID.
  public let id: UInt16
  /// Packed: slots of the ring that the chain took.
  @usableFromInline let slots: UInt16
  @usableFromInline let record: UInt16

  init(id: UInt16, slots: UInt16, sequence: UInt32, record: UInt16, memory: consuming ChainMemory) {
    self.memory = memory
    self.sequence = sequence
    self.id = id
    self.slots = slots
    self.record = record
  }

  /// Device-readable memory; empty when ``fault`` is set.
  @inlinable public var readable: BufferSegments { _read { yield memory.readable } }
  /// Device-writable memory; empty when ``fault`` is set.
  @inlinable public var writable: BufferSegments { _read { yield memory.writable } }
  /// Why some of the chain's memory cannot be reached, or nil. Such a chain is not to be acted on: complete it with 0
  /// bytes. Where the device's requests end in a status byte, after ``writeStatus(_:)``; if that fails, the driver
  /// would take the old contents for the status, and only ``Virtqueue/retire(at:)`` and an error are left.
  @inlinable public var fault: DMAFault? { memory.fault }

  /// Writes the last device-writable byte, where a request of many devices has its status: of a chain with a ``fault``
  /// too, if that byte can be reached. False if it cannot.
  @inlinable public func writeStatus(_ status: UInt8) -> Bool { memory.writeStatus(status) }
}
