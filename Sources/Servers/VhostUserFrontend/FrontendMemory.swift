public import DMA
internal import HostIO
internal import Synchronization
public import VhostUser

/// Guest memory that a front-end shares with back-ends: anonymous files, mapped here and passed there.
///
/// It outlives connections, so that a back-end can be replaced under a running driver. Any thread may use it.
public final class FrontendMemory: Sendable {
  /// A region and its file.
  final class Piece: Sendable {
    let description: RegionDescription
    let file: MemoryFile
    let mapping: HostMapping

    init(_ description: RegionDescription, _ file: consuming MemoryFile, _ mapping: HostMapping) {
      self.description = description
      self.file = file
      self.mapping = mapping
    }
  }

  /// The memory as the driver sees it, by guest address.
  public let guest = GuestMemory()
  private let state = Mutex<[Piece]>([])

  /// No memory yet.
  public init() {}

  /// One region of `byteCount` zero bytes at guest address 0.
  public convenience init(byteCount: UInt64) throws(FrontendError) {
    self.init()
    try add(byteCount: byteCount, at: GuestAddress(0))
  }

  /// The regions, in the order in which they were added.
  public var regions: [RegionDescription] { state.withLock { $0.map(\.description) } }

  var pieces: [Piece] { state.withLock { $0 } }

  /// Where regions appear in the front-end's address space unless said otherwise: far from their guest addresses, so
  /// that a back-end that confuses the two is found out.
  public static let frontendBase: UInt64 = 0x7e00_0000_0000

  /// Makes a region of zero bytes. Back-ends learn of it with ``Frontend/share()`` or ``Frontend/add(_:)``.
  ///
  /// - Parameters:
  ///   - frontendAddress: the address that messages carry; nil for ``frontendBase`` plus the guest address.
  ///   - offset: bytes before the region in its file, a multiple of 4096.
  ///   - sealed: whether the file can no longer be cut short; false only to see what a back-end does about
  ///     ``truncate(_:to:)``.
  @discardableResult
  public func add(
    byteCount: UInt64, at guestAddress: GuestAddress, frontendAddress: FrontendAddress? = nil, offset: UInt64 = 0,
    sealed: Bool = true
  ) throws(FrontendError) -> RegionDescription {
    let file = try rethrowing(
      MemoryFile(name: "sluice-guest", size: offset &+ byteCount, seals: sealed ? [.shrink] : []),
      as: FrontendError.host)
    let address = frontendAddress ?? FrontendAddress(Self.frontendBase &+ guestAddress.rawValue)
    let description = RegionDescription(
      guestAddress: guestAddress.rawValue, size: byteCount, frontendAddress: address.rawValue, offset: offset)
    let mapping = try rethrowing(
      HostMapping(
        descriptor: file.descriptor.rawValue, offset: offset, byteCount: Int(clamping: byteCount)),
      as: { (error: MappingError) in FrontendError.host(HostError(error)) })
    let piece = Piece(description, file, mapping)
    try state.withLock { pieces throws(FrontendError) in
      func refusal(_: MemoryRegionError) -> FrontendError {
        .memory(
          "a region of \(byteCount) bytes at guest address \(guestAddress.rawValue) overlaps another or is malformed")
      }
      guard byteCount > 0, address.rawValue <= .max - (byteCount - 1) else { throw refusal(.malformed) }
      guard !pieces.contains(where: { $0.description.overlapsInFrontend(description) }) else { throw refusal(.overlap) }
      try rethrowing(
        guest.add(MemoryRegion(guestAddress: guestAddress, byteCount: byteCount, mapping: mapping)), as: refusal)
      pieces.append(piece)
    }
    return description
  }

  /// Takes a region away here. Remove it from back-ends first: ``Frontend/remove(_:)``.
  public func remove(_ description: RegionDescription) throws(FrontendError) {
    guard regions.contains(description) else { throw .memory("no such region") }
    try rethrowing(
      guest.remove(guestAddress: GuestAddress(description.guestAddress), byteCount: description.size),
      saying: { _ in FrontendError.memory("no such region") })
    state.withLock { $0.removeAll { $0.description == description } }
  }

  /// Cuts a region's file to `byteCount` bytes, as a hostile front-end would. EPERM for a sealed one.
  public func truncate(_ description: RegionDescription, to byteCount: UInt64) throws(FrontendError) {
    guard let piece = pieces.first(where: { $0.description == description }) else { throw .memory("no such region") }
    try rethrowing(piece.file.resize(to: byteCount), as: FrontendError.host)
  }

  /// The front-end address of a guest address, if memory is there.
  public func frontendAddress(of address: GuestAddress) -> FrontendAddress? {
    state.withLock { pieces in
      for piece in pieces { if let found = piece.description.frontendAddress(of: address) { return found } }
      return nil
    }
  }
}
