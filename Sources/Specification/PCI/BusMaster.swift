public import DMA
public import IOMMUInterface

/// A function's way to memory and interrupts, and its only one: QEMU's `get_dma_as`.
///
/// The bus makes it and keeps it up to date: its number, its bus master enable bit, the IOMMU in front of it. The
/// spaces stay the same objects for as long as the function is plugged in; what is behind them changes.
public final class BusMaster: Sendable {
  /// The way to memory. The bus alone changes it, so functions see what of it is theirs to use.
  package let endpoint: DMAEndpoint
  private let messages: any MessageInterrupts
  private let wire: @Sendable (PCIInterruptPin, Bool) -> Void

  init(
    _ endpoint: DMAEndpoint, messages: any MessageInterrupts, wire: @escaping @Sendable (PCIInterruptPin, Bool) -> Void
  ) {
    self.endpoint = endpoint
    self.messages = messages
    self.wire = wire
  }

  /// Its number, as the buses are numbered now (R030).
  public var requester: RequesterID { endpoint.requester }
  /// What the function reaches under its requester ID: memory as an IOMMU in front of it translates, physical memory
  /// without one, nothing while bus mastering is off.
  public var translated: any DMASpace { endpoint.translated }
  /// Physical memory, past any IOMMU; nothing while bus mastering is off, here too (R039).
  public var physical: any DMASpace { endpoint.physical }
  /// Whether an IOMMU decides now what ``translated`` reaches, even if it lets everything pass.
  public var isBehindIOMMU: Bool { endpoint.isBehindIOMMU }
  /// What both spaces have answered.
  public var counts: DMAEndpoint.Counts { endpoint.counts }

  /// Writes a message to the platform, whose rules apply and not the device's address path (R037). A function that may
  /// not write memory cannot interrupt so either: the message is lost.
  public func send(_ message: InterruptMessage) {
    guard endpoint.translatedSpace.isOpen else { return }
    messages.deliver(message, from: endpoint.requester)
  }

  /// Drives an interrupt pin; functions use ``INTx``.
  func set(_ pin: PCIInterruptPin, asserted: Bool) { wire(pin, asserted) }
}
