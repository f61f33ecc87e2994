import DMA
import DriverDMA
import VirtioDrivers

/// A request's buffer in a shape: what the driver submits, how it is mapped, and where its bytes are in truth.
struct ShapedBuffer {
  /// A run of the guest's memory.
  struct Place {
    var address: GuestAddress
    var count: Int
  }
  var segments: [GuestSegment]
  /// In the order of the device's addresses; what is not there left out.
  var places: [Place]
  var plan = ShapedMapper.Plan.ordinary

  /// - Parameters:
  ///   - platform: the machine's.
  ///   - usesPlatform: the driver uses the platform's addresses and not physical ones.
  ///   - domain: the domain that they are in, or nil.
  init(_ shape: Shape, on platform: Platform, usesPlatform: Bool, in domain: UnitDomain?) {
    let granule = domain?.granule ?? 4096
    func page(_ i: UInt64) -> GuestAddress { GuestAddress(MemoryPlan.buffers + i * granule) }
    func places(_ pages: [UInt64]) -> [Place] { pages.map { Place(address: page($0), count: Int(granule)) } }
    func whole(_ pages: [UInt64]) -> [GuestSegment] {
      [GuestSegment(page(pages[0]), count: UInt32(pages.count) * UInt32(granule))]
    }
    switch shape {
    case .contiguous:
      let start = GuestAddress(MemoryPlan.buffers + 0x200)
      segments = [GuestSegment(start, count: 8192)]
      self.places = [Place(address: start, count: 8192)]
    case .scattered:
      let pages: [UInt64] = [5, 1, 3]
      self.places = places(pages)
      if domain != nil {
        segments = whole(pages)
        plan = .pages(pages.map { page($0) }, permissions: nil, endsAperture: false)
      } else {
        segments = pages.map { GuestSegment(page($0), count: UInt32(granule)) }
      }
    case .hole:
      if domain != nil {
        segments = [GuestSegment(page(0), count: 3 * UInt32(granule))]
        self.places = places([0, 2])
        plan = .pages([page(0), nil, page(2)], permissions: nil, endsAperture: false)
      } else if usesPlatform, platform.reach != .everything || platform.unit == .grants {
        // What the driver would have to translate, copy or grant, and did not.
        segments = whole([0, 1])
        self.places = [Place(address: page(0), count: 2 * Int(granule))]
        plan = .unmapped(
          platform.unit == .grants ? DMAAddress(GrantMapper.marker | 0x1FF0 << 12) : DMAAddress(page(0).rawValue))
      } else {
        let hole = GuestAddress(MemoryPlan.hole)
        segments = [GuestSegment(GuestAddress(hole.rawValue - 4096), count: 3 * 4096)]
        self.places = [
          Place(address: GuestAddress(hole.rawValue - 4096), count: 4096),
          Place(address: GuestAddress(hole.rawValue + 4096), count: 4096),
        ]
      }
    case .readOnly, .writeOnly:
      segments = whole([0, 1])
      self.places = [Place(address: page(0), count: 2 * Int(granule))]
      let permissions: DMAPermissions = shape == .readOnly ? .read : .write
      plan =
        domain == nil ? .given(.toDevice) : .pages([page(0), page(1)], permissions: permissions, endsAperture: false)
    case .top:
      if domain != nil {
        segments = whole([0, 1])
        self.places = [Place(address: page(0), count: 2 * Int(granule))]
        plan = .pages([page(0), page(1)], permissions: nil, endsAperture: true)
      } else {
        let start = GuestAddress(MemoryPlan.top.start + (MemoryPlan.top.byteCount - 8192))
        segments = [GuestSegment(start, count: 8192)]
        self.places = [Place(address: start, count: 8192)]
      }
    }
  }

  /// Bytes that the driver asks for.
  var byteCount: Int { segments.reduce(0) { $0 + Int($1.count) } }

  /// Fills every place, and a little around it.
  func fill(_ byte: UInt8, in memory: GuestMemory) {
    for place in places {
      let (start, count) = Self.around(place, in: memory)
      _ = memory.copy([UInt8](repeating: byte, count: count).span, to: start)
    }
  }

  /// Puts bytes where the device will read them.
  func put(_ bytes: [UInt8], in memory: GuestMemory) {
    var at = 0
    for place in places {
      let count = min(place.count, bytes.count - at)
      _ = memory.copy(bytes.span.extracting(at..<at + count), to: place.address)
      at += count
    }
  }

  /// The current contents, place after place.
  func bytes(in memory: GuestMemory) -> [UInt8] { places.flatMap { Self.read($0.address, $0.count, memory) } }

  /// Whether the bytes around the places are as they were filled.
  func isGuarded(by byte: UInt8, in memory: GuestMemory) -> Bool {
    places.allSatisfy { place in
      let (start, count) = Self.around(place, in: memory)
      let lead = Int(place.address.rawValue - start.rawValue)
      let all = Self.read(start, count, memory)
      return all.prefix(lead).allSatisfy { $0 == byte } && all.dropFirst(lead + place.count).allSatisfy { $0 == byte }
    }
  }

  private static func around(_ place: Place, in memory: GuestMemory) -> (GuestAddress, Int) {
    guard
      let region = memory.regions.first(where: { place.address.rawValue &- $0.guestAddress.rawValue < $0.byteCount })
    else {
      return (place.address, 0)
    }
    let lead = min(64, place.address.rawValue - region.guestAddress.rawValue)
    let last = region.guestAddress.rawValue + (region.byteCount - 1)
    let tail = min(64, last - (place.address.rawValue + UInt64(place.count - 1)))
    return (GuestAddress(place.address.rawValue - lead), Int(lead) + place.count + Int(tail))
  }

  private static func read(_ address: GuestAddress, _ count: Int, _ memory: GuestMemory) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = memory.copy(from: address, into: &span)
    return bytes
  }
}
