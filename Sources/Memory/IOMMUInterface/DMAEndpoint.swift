public import DMA
import Synchronization

/// A device's way to memory, and its only one: its number, and the two spaces that its addresses may be in.
///
/// The bus or the machine that the device is part of makes it, numbers it, and puts IOMMUs in front of it. The spaces
/// stay the same objects for as long as the device is there; only what is behind them changes.
public final class DMAEndpoint: Sendable {
  /// Look-ups that queues answered themselves, those that came to the space, and accesses refused, in both spaces.
  public typealias Counts = (
    translated: (hits: UInt64, misses: UInt64, faults: UInt64),
    physical: (hits: UInt64, misses: UInt64, faults: UInt64)
  )
  package let translatedSpace: EndpointSpace
  package let physicalSpace: EndpointSpace
  /// What ``setIOMMU(_:)`` put in front.
  private let iommu = Mutex<(any IOMMU)?>(nil)
  private let translates = Atomic(false)

  /// An endpoint over `memory`, without an IOMMU in front of it.
  ///
  /// - Parameters:
  ///   - requester: its number. No bus numbers a device on the board: the machine's description does, and no other
  ///     endpoint of its IOMMU has the same (R034).
  ///   - isOpen: whether it reaches memory from the start. False for a PCI function, whose bus master enable bit is off
  ///     then; a device on the board has no such bit.
  public init(_ memory: GuestMemory, requester: RequesterID, isOpen: Bool = true) {
    translatedSpace = EndpointSpace(memory, requester: requester, isOpen: isOpen)
    physicalSpace = EndpointSpace(memory, requester: requester, isOpen: isOpen)
  }

  deinit { iommu.withLock { $0?.release(translatedSpace) } }

  /// Its number, by which an IOMMU in front of it knows it.
  public package(set) var requester: RequesterID {
    get { translatedSpace.requester }
    set {
      if translatedSpace.requester != newValue { translatedSpace.requester = newValue }
      if physicalSpace.requester != newValue { physicalSpace.requester = newValue }
    }
  }
  /// What the device reaches under its number: memory as an IOMMU in front of it translates, physical memory without
  /// one (R033).
  public var translated: any DMASpace { translatedSpace }
  /// Physical memory, past any IOMMU.
  public var physical: any DMASpace { physicalSpace }
  /// Whether an IOMMU decides now what ``translated`` reaches, even if it lets everything pass.
  public var isBehindIOMMU: Bool { translates.load(ordering: .acquiring) }
  /// What both spaces have answered.
  public var counts: Counts { (translatedSpace.counts, physicalSpace.counts) }

  /// Puts an IOMMU in front of the device, or takes it away. Call it from a control thread; it returns when nothing
  /// that was begun before is under way.
  ///
  /// For a device that its machine's description alone places. A bus does not use this: it moves all its endpoints at
  /// once.
  public func setIOMMU(_ new: (any IOMMU)?) {
    iommu.withLock { iommu in
      guard iommu !== new else { return }
      iommu?.release(translatedSpace)
      iommu = new
      // A queue that starts meanwhile may be refused an untranslated path, but not be given one.
      if let new {
        setBehindIOMMU(true)
        new.adopt(translatedSpace)
      } else {
        translatedSpace.setRoute(.physical)
        setBehindIOMMU(false)
      }
    }
  }

  /// See ``isBehindIOMMU``.
  package func setBehindIOMMU(_ isBehind: Bool) { translates.store(isBehind, ordering: .releasing) }

  /// Opens or closes both spaces: without bus mastering neither reaches anything (R039).
  package func setOpen(_ isOpen: Bool) {
    translatedSpace.setOpen(isOpen)
    physicalSpace.setOpen(isOpen)
  }

  /// Ends both spaces for good: the device is gone.
  package func block() {
    translatedSpace.setRoute(.blocked(.stopped))
    physicalSpace.setRoute(.blocked(.stopped))
  }
}
