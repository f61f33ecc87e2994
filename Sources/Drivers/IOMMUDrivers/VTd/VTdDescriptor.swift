internal import IOMMUInterface

/// A descriptor as the driver puts it into the invalidation queue (Intel VT-d specification, "Queued Invalidation
/// Interface").
struct VTdDescriptor {
  private enum Kind: UInt64 {
    case contextCache = 1
    case iotlb = 2
    case deviceIOTLB = 3
    case wait = 5
  }
  /// How much a context-cache or IOTLB invalidation concerns (G).
  private enum Granularity: UInt64 {
    case all = 1
    case domain = 2
    /// A requester of the context cache, a range of pages of the IOTLB.
    case selective = 3
    var bits: UInt64 { rawValue << 4 }
  }
  let low: UInt64
  let high: UInt64

  private init(_ kind: Kind, _ fields: UInt64, high: UInt64 = 0) {
    low = kind.rawValue | fields
    self.high = high
  }

  private static func domainBits(_ domain: UInt16) -> UInt64 { UInt64(domain) << 16 }
  private static func requesterBits(_ requester: RequesterID) -> UInt64 { UInt64(requester.rawValue) << 32 }

  /// Every context entry.
  static var everyContext: Self { Self(.contextCache, Granularity.all.bits) }

  /// A requester's context entry, which named this domain.
  static func context(of requester: RequesterID, domain: UInt16) -> Self {
    Self(.contextCache, Granularity.selective.bits | domainBits(domain) | requesterBits(requester))
  }

  /// Every translation.
  ///
  /// - Parameter drains: ``VTdCapabilities/drains``.
  static func everyTranslation(drains: UInt64) -> Self { Self(.iotlb, Granularity.all.bits | drains) }

  /// A domain's translations.
  static func translations(of domain: UInt16, drains: UInt64) -> Self {
    Self(.iotlb, Granularity.domain.bits | drains | domainBits(domain))
  }

  /// A domain's translations of 2^`order` pages around an address.
  ///
  /// - Parameter keepsTables: IH: nothing but pages changed.
  static func pages(
    of domain: UInt16, around address: UInt64, order: UInt64, keepsTables: Bool, drains: UInt64
  ) -> Self {
    let start = address & ~((4096 << order) &- 1)
    return Self(
      .iotlb, Granularity.selective.bits | drains | domainBits(domain),
      high: start | (keepsTables ? 1 << 6 : 0) | order)
  }

  /// What a requester itself keeps of a range.
  static func deviceIOTLB(of requester: RequesterID, first: UInt64, last: UInt64) -> Self {
    Self(.deviceIOTLB, requesterBits(requester), high: PageOrder.word(first, last))
  }

  /// A wait whose end the unit says by storing a word (SW), and before which everything posted is done (FN).
  static func wait(storing token: UInt64, at address: UInt64) -> Self {
    Self(.wait, 1 << 5 | 1 << 6 | token << 32, high: address)
  }
}
