internal import DMA
internal import IOMMUInterface

/// What an IOMMU device must answer, and where its endpoints must get to: §5.13.6 over plain lists, read from the bytes
/// of requests. It shares no code with the device, and is slow.
public struct IOMMUModel {
  /// What the device was made with, as far as answers depend on it.
  public struct Limits: Sendable {
    public var granule: UInt64 = 4096
    public var input: ClosedRange<UInt64> = 0 ... .max
    public var domains: ClosedRange<UInt32> = 0 ... .max
    public var probeSize = 64
    /// Ranges that an endpoint keeps for itself, by endpoint.
    public var reserved: [UInt16: [ClosedRange<UInt64>]] = [:]
    public var maxDomains = 3
    public var maxMappingsPerDomain = 6
    public var maxMappings = 9
    public init() {}
  }
  struct Mapping {
    var range: ClosedRange<UInt64>
    var physical: UInt64
    var flags: UInt32
  }
  struct Domain {
    var isBypass: Bool
    var mappings: [Mapping] = []
  }
  let limits: Limits
  var bypass = false
  /// Endpoints there are, and the domain each is attached to.
  var endpoints: [UInt32: UInt32?] = [:]
  var domains: [UInt32: Domain] = [:]

  public init(_ limits: Limits) { self.limits = limits }

  /// What the device must do with a request that has `room` device-writable bytes.
  struct Answer: Equatable {
    /// Bytes it says to have written.
    var used = 0
    /// Where the status is, and which.
    var status: (at: Int, value: UInt8)?
    static func == (a: Self, b: Self) -> Bool {
      a.used == b.used && a.status?.at == b.status?.at && a.status?.value == b.status?.value
    }
  }

  mutating func answer(_ bytes: [UInt8], room: Int) -> Answer {
    guard room >= 4, let type = bytes.first else { return Answer() }
    func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) } }
    func long(_ at: Int) -> UInt64 { UInt64(word(at)) | UInt64(word(at + 4)) << 32 }
    let sizes: [UInt8: Int] = [1: 20, 2: 20, 3: 36, 4: 28, 5: 72]
    guard let size = sizes[type], bytes.count >= size else { return Answer() }
    switch type {
    case 1: return Answer(used: 4, status: (0, attach(word(4), word(8), word(12), word(16))))
    case 2: return Answer(used: 4, status: (0, detach(word(4), word(8))))
    case 3: return Answer(used: 4, status: (0, map(word(4), long(8), long(16), long(24), word(32))))
    case 4: return Answer(used: 4, status: (0, unmap(word(4), long(8), long(16), word(24))))
    default:
      guard room >= limits.probeSize + 4 else { return Answer(used: room, status: (room - 4, 4)) }
      return Answer(used: limits.probeSize + 4, status: (limits.probeSize, endpoints[word(4)] == nil ? 6 : 0))
    }
  }

  private mutating func attach(_ domain: UInt32, _ endpoint: UInt32, _ flags: UInt32, _ reserved: UInt32) -> UInt8 {
    if reserved != 0 || flags > 1 { return 4 }
    guard let old = endpoints[endpoint] else { return 6 }
    if !limits.domains.contains(domain) { return 5 }
    if let there = domains[domain] {
      if there.isBypass != (flags == 1) { return 4 }
      if old == domain { return 0 }
      for range in limits.reserved[UInt16(endpoint)] ?? []
      where there.mappings.contains(where: { $0.range.overlaps(range) }) { return 2 }
    }
    var next = self
    next.leave(endpoint)
    if next.domains[domain] == nil {
      if next.domains.count >= limits.maxDomains { return 8 }
      next.domains[domain] = Domain(isBypass: flags == 1)
    }
    next.endpoints[endpoint] = .some(domain)
    self = next
    return 0
  }

  private mutating func detach(_ domain: UInt32, _ endpoint: UInt32) -> UInt8 {
    guard let old = endpoints[endpoint] else { return 6 }
    if old != domain { return 4 }
    leave(endpoint)
    return 0
  }

  private mutating func leave(_ endpoint: UInt32) {
    guard let old = endpoints[endpoint], let domain = old else { return }
    endpoints[endpoint] = .some(nil)
    if !endpoints.values.contains(where: { $0 == domain }) { domains[domain] = nil }
  }

  private mutating func map(
    _ domain: UInt32, _ first: UInt64, _ last: UInt64, _ physical: UInt64, _ flags: UInt32
  ) -> UInt8 {
    if flags > 7 { return 4 }
    guard let there = domains[domain] else { return 6 }
    if there.isBypass { return 4 }
    if last <= first || first % limits.granule != 0 || last % limits.granule != limits.granule - 1
      || physical % limits.granule != 0
    {
      return 5
    }
    if !limits.input.contains(first) || !limits.input.contains(last) || physical > .max - (last - first) { return 5 }
    for (endpoint, its) in endpoints where its == domain {
      for range in limits.reserved[UInt16(endpoint)] ?? [] where range.overlaps(first...last) { return 4 }
    }
    if domains.values.reduce(0, { $0 + $1.mappings.count }) >= limits.maxMappings { return 8 }
    if first == 0, last == .max { return 5 }
    if there.mappings.count >= limits.maxMappingsPerDomain { return 8 }
    if there.mappings.contains(where: { $0.range.overlaps(first...last) }) { return 4 }
    domains[domain]?.mappings.append(Mapping(range: first...last, physical: physical, flags: flags))
    return 0
  }

  private mutating func unmap(_ domain: UInt32, _ first: UInt64, _ last: UInt64, _ reserved: UInt32) -> UInt8 {
    if reserved != 0 { return 4 }
    guard let there = domains[domain] else { return 6 }
    if there.isBypass { return 4 }
    if first > last { return 5 }
    let touched = there.mappings.filter { $0.range.overlaps(first...last) }
    if touched.contains(where: { $0.range.lowerBound < first || $0.range.upperBound > last }) { return 5 }
    domains[domain]?.mappings.removeAll { $0.range.overlaps(first...last) }
    return 0
  }

  mutating func plug(_ endpoint: UInt32) { if endpoints[endpoint] == nil { endpoints[endpoint] = .some(nil) } }
  mutating func unplug(_ endpoint: UInt32) {
    leave(endpoint)
    endpoints[endpoint] = nil
  }
  mutating func reset() {
    for endpoint in endpoints.keys { endpoints[endpoint] = .some(nil) }
    domains = [:]
  }

  /// The guest address behind an address of an endpoint, or why there is none.
  func reach(_ endpoint: UInt32, _ address: UInt64, _ access: DMAAccess) -> Result<UInt64, Refusal> {
    guard let attached = endpoints[endpoint] else { return .failure(.gone) }
    guard let number = attached, let domain = domains[number] else {
      return bypass ? .success(address) : .failure(.unmapped)
    }
    if domain.isBypass { return .success(address) }
    guard let mapping = domain.mappings.first(where: { $0.range.contains(address) }) else { return .failure(.unmapped) }
    guard mapping.flags & (access == .read ? 1 : 2) != 0 else { return .failure(.permission) }
    return .success(mapping.physical + (address - mapping.range.lowerBound))
  }
  enum Refusal: Error { case gone, unmapped, permission }
}
