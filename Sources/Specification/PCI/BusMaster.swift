public import DMA
public import IOMMUInterface
import Synchronization

/// A function's way to memory and interrupts, and its only one: QEMU's `get_dma_as`.
///
/// The bus makes it and keeps it up to date: its number, its bus master enable bit, the IOMMU in front of it. The
/// spaces stay the same objects for as long as the function is plugged in; what is behind them changes.
public final class BusMaster: Sendable {
  let endpoint: EndpointSpace
  let direct: EndpointSpace
  private let messages: any MessageInterrupts
  private let wire: @Sendable (PCIInterruptPin, Bool) -> Void
  private let translates: Atomic<Bool>

  init(
    endpoint: EndpointSpace, direct: EndpointSpace, isBehindIOMMU: Bool, messages: any MessageInterrupts,
    wire: @escaping @Sendable (PCIInterruptPin, Bool) -> Void
  ) {
    self.endpoint = endpoint
    self.direct = direct
    self.messages = messages
    self.wire = wire
    translates = Atomic(isBehindIOMMU)
  }

  /// Its number, as the buses are numbered now (R030).
  public var requester: RequesterID { endpoint.requester }
  /// What the function reaches under its requester ID: memory as an IOMMU in front of it translates, physical memory
  /// without one, nothing while bus mastering is off.
  public var translated: any DMASpace { endpoint }
  /// Physical memory, past any IOMMU; nothing while bus mastering is off, here too (R039).
  public var physical: any DMASpace { direct }
  /// Whether an IOMMU decides now what ``translated`` reaches, even if it lets everything pass.
  public var isBehindIOMMU: Bool { translates.load(ordering: .acquiring) }
  func setBehindIOMMU(_ isBehind: Bool) { translates.store(isBehind, ordering: .releasing) }
  /// Look-ups that queues answered themselves, those that came to the space, and accesses refused, in both spaces.
  public var counts:
    (
      translated: (hits: UInt64, misses: UInt64, faults: UInt64),
      physical: (hits: UInt64, misses: UInt64, faults: UInt64)
    )
  {
    (endpoint.counts, direct.counts)
  }

  /// Writes a message to the platform, whose rules apply and not the device's address path (R037). A function that may
  /// not write memory cannot interrupt so either: the message is lost.
  public func send(_ message: InterruptMessage) {
    guard endpoint.isOpen else { return }
    messages.deliver(message, from: endpoint.requester)
  }

  /// Drives an interrupt pin; functions use ``INTx``.
  func set(_ pin: PCIInterruptPin, asserted: Bool) { wire(pin, asserted) }
}
