public import DMA
public import IOMMUInterface
import Synchronization

/// A memory-mapped device's way to memory, and its only one. No bus numbers such devices: the machine does, and an
/// IOMMU that it describes to the guest as being in front of the device knows it by that number (R034).
///
/// The spaces stay the same objects for as long as the device is there; only the route behind them changes.
public final class MMIOEndpoint: Sendable {
  private let endpoint: EndpointSpace
  private let direct: EndpointSpace
  private let iommu = Mutex<(any IOMMU)?>(nil)

  /// An endpoint over `memory`, without an IOMMU in front of it.
  ///
  /// - Parameter requester: the number that the machine's description gives the device; no other endpoint of its IOMMU
  ///   has it.
  public init(_ memory: GuestMemory, requester: RequesterID) {
    // There is no bus master enable bit: a device on the board is always on.
    endpoint = EndpointSpace(memory, requester: requester, isOpen: true)
    direct = EndpointSpace(memory, requester: requester, isOpen: true)
  }

  deinit { iommu.withLock { $0?.release(endpoint) } }

  /// Its number.
  public var requester: RequesterID { endpoint.requester }
  /// What the device reaches under its number: memory as an IOMMU in front of it translates, physical memory without
  /// one (R033).
  public var translated: any DMASpace { endpoint }
  /// Physical memory, past any IOMMU.
  public var physical: any DMASpace { direct }
  /// Whether an IOMMU decides now what ``translated`` reaches, even if it lets everything pass.
  public var isBehindIOMMU: Bool { iommu.withLock { $0 != nil } }
  /// Look-ups that queues answered themselves, those that came to the space, and accesses refused, in both spaces.
  public var counts:
    (
      translated: (hits: UInt64, misses: UInt64, faults: UInt64),
      physical: (hits: UInt64, misses: UInt64, faults: UInt64)
    )
  {
    (endpoint.counts, direct.counts)
  }

  /// Puts an IOMMU in front of the device, or takes it away. Call it from a control thread; it returns when nothing
  /// that was begun before is under way.
  public func setIOMMU(_ new: (any IOMMU)?) {
    iommu.withLock { iommu in
      guard iommu !== new else { return }
      iommu?.release(endpoint)
      iommu = new
      if let new { new.adopt(endpoint) } else { endpoint.setRoute(.physical) }
    }
  }
}
