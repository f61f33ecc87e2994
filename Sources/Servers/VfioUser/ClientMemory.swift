internal import DMA
internal import HostIO
internal import IOMMUInterface
internal import Synchronization

/// The client's memory as the device may reach it: what DMA_MAP and DMA_UNMAP say, and nothing else.
///
/// Each file that comes with a mapping is mapped here once, whole, as a region of a physical memory of our own making;
/// the mappings are those of an IOMMU's domain in front of the device. So a map costs an entry of a list, and an unmap
/// returns when no request under way uses the range any more, as for every other IOMMU. Mappings without a file are
/// reached by messages (``ClientMessages``), which the client checks itself: taking one away waits for nothing. Control
/// thread only, but for what the domains do.
final class ClientMemory: IOMMU, AddressTranslation {
  /// Why a mapping was refused, as the error number of the reply.
  struct Refusal: Error {
    var errno: Errno
    var reason: String
  }
  /// A file of the client's.
  private struct File {
    var device: UInt64
    var inode: UInt64
    var isWritable: Bool
    var base: UInt64
    var byteCount: UInt64
  }
  private struct State {
    var files: [File] = []
    /// Where the next file's region may start.
    var next: UInt64 = 0
    var needsMessages = false
  }
  let memory: GuestMemory
  /// Mappings with a file.
  let domain: Domain
  /// Mappings without.
  let remote: Domain
  let messages: ClientMessages
  let ledger = MappingLedger()
  private let state = Mutex(State())
  /// Mappings at most, those without a file included.
  static let maxMappings = 65_535
  /// Files at most.
  static let maxFiles = 64

  /// - Parameter refused: called for each access that is refused, on queue threads; it must not wait for them.
  init(refused: @escaping @Sendable (DMAFault) -> Void = { _ in }) throws(HostError) {
    // Only its list of mappings is used: nothing is attached to it.
    let remote = Domain(GuestMemory(), maxMappings: Self.maxMappings)
    self.remote = remote
    messages = try ClientMessages { address, count, access in remote.fault(for: access, at: address, count: count) }
    memory = GuestMemory(remote: messages)
    domain = Domain(memory, maxMappings: Self.maxMappings) { fault, _ in refused(fault) }
  }

  /// Whether the device works in memory that is reached by messages. Firmware that it can only read is none of it.
  var needsMessages: Bool { state.withLock { $0.needsMessages } }

  /// Bytes of device addresses that are mapped now, those without a file included.
  var mappedBytes: UInt64 { domain.byteCount &+ remote.byteCount }

  /// Files that mappings are of, and their bytes.
  var files: (count: Int, byteCount: UInt64) {
    state.withLock { ($0.files.count, $0.files.reduce(0) { $0 + $1.byteCount }) }
  }

  // MARK: IOMMU

  func adopt(_ endpoint: EndpointSpace) {
    domain.attach(endpoint)
    endpoint.setRoute(.translated(self))
  }

  func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    do throws(DMAFault) {
      return try domain.lookUp(address, for: access, by: requester)
    } catch {
      return try remote.lookUp(address, for: access, by: requester)
    }
  }

  func report(_ fault: DMAFault, by requester: RequesterID) { domain.report(fault, by: requester) }
  func release(_ endpoint: EndpointSpace) { domain.detach(endpoint, to: .blocked(.stopped)) }

  // MARK: Mappings

  /// Makes `request` effective.
  ///
  /// - Parameter descriptor: the file that came along, or nil.
  func map(_ request: MapRequest, _ descriptor: consuming FileDescriptor?) throws(Refusal) {
    try check(request.address, request.size)
    guard request.flags & ~0xf == 0 else {
      throw Refusal(errno: .invalidArgument, reason: "its flags are \(String(request.flags, radix: 16))")
    }
    guard let descriptor else {
      guard request.flags & (MapRequest.byMapping | MapRequest.byFile) == 0 else {
        throw Refusal(errno: .invalidArgument, reason: "it is to be reached through a descriptor, and none came")
      }
      let permissions = Self.permissions(of: request)
      try map(request, to: GuestMemory.remoteStart, permissions: permissions, in: remote)
      if permissions.contains(.write) { state.withLock { $0.needsMessages = true } }
      return
    }
    guard request.offset & 4095 == 0, request.offset <= UInt64.max - request.size else {
      throw Refusal(errno: .invalidArgument, reason: "its offset is \(request.offset)")
    }
    let permissions = Self.permissions(of: request)
    let file = try file(
      of: descriptor, upTo: request.offset + request.size, isWritten: permissions.contains(.write))
    if permissions.contains(.write), !file.isWritable {
      throw Refusal(errno: .permissionDenied, reason: "its file cannot be written")
    }
    try map(request, to: GuestAddress(file.base + request.offset), permissions: permissions, in: domain)
  }

  private static func permissions(of request: MapRequest) -> DMAPermissions {
    var permissions: DMAPermissions = []
    if request.flags & MapRequest.readable != 0 { permissions.insert(.read) }
    if request.flags & MapRequest.writable != 0 { permissions.insert(.write) }
    return permissions
  }

  private func map(
    _ request: MapRequest, to guest: GuestAddress, permissions: DMAPermissions, in target: Domain
  ) throws(Refusal) {
    let other = target === domain ? remote : domain
    let last = request.address + (request.size - 1)
    guard !other.isMapped(from: DMAAddress(request.address), through: DMAAddress(last)) else {
      throw Refusal(errno: .fileExists, reason: "some of it is mapped already")
    }
    guard domain.mappings + remote.mappings < Self.maxMappings else {
      throw Refusal(errno: .noSpace, reason: "there are \(Self.maxMappings) mappings already")
    }
    do throws(DomainError) {
      try target.map(
        DMAAddress(request.address), byteCount: request.size, to: guest, permissions: permissions)
    } catch {
      switch error {
      case .overlap: throw Refusal(errno: .fileExists, reason: "some of it is mapped already")
      case .full: throw Refusal(errno: .noSpace, reason: "there are \(Self.maxMappings) mappings already")
      case .range, .split: throw Refusal(errno: .invalidArgument, reason: "\(error)")
      }
    }
  }

  /// Takes back everything inside `request`, and returns when nothing uses it any more. Where nothing is mapped nothing
  /// happens: QEMU's AMD-Vi unmaps all of the address space, piece by piece, when a device changes its domain.
  func unmap(_ request: UnmapRequest) throws(Refusal) {
    if request.flags & UnmapRequest.everything != 0 {
      messages.excluding { remote.removeAll() }
      forgetCopies(0...UInt64.max)
      return domain.removeAll()
    }
    guard request.flags == 0 else { throw Refusal(errno: .notSupported, reason: "there is no log of dirty pages") }
    guard request.size > 0, request.address <= UInt64.max - (request.size - 1) else {
      throw Refusal(errno: .invalidArgument, reason: "\(request.size) bytes at \(request.address)")
    }
    let (first, last) = (DMAAddress(request.address), DMAAddress(request.address + (request.size - 1)))
    // Both before either, so that a refusal changes nothing.
    guard !domain.splits(from: first, through: last), !remote.splits(from: first, through: last) else {
      throw Refusal(errno: .invalidArgument, reason: "only a part of a mapping would go")
    }
    do throws(DomainError) {
      let count = try messages.excluding { () throws(DomainError) in try remote.unmap(from: first, through: last) }
      if count > 0 { forgetCopies(first.rawValue...last.rawValue) }
      try domain.unmap(from: first, through: last)
    } catch {
      throw Refusal(errno: .invalidArgument, reason: "only a part of a mapping would go")
    }
  }

  /// Queues look anew for rings of which they have copies. What is under way is not waited for: the client does no access
  /// any more that comes too late.
  private func forgetCopies(_ range: ClosedRange<UInt64>) {
    for endpoint in domain.endpoints { endpoint.fence.advance(forgetting: range) }
  }

  /// The client has gone: nothing of its memory is reachable, or mapped here, any more.
  func removeAll() {
    messages.detach()
    remote.removeAll()
    domain.removeAll()
    state.withLock { $0 = State() }
    try? memory.replace(with: [])
  }

  private func check(_ address: UInt64, _ size: UInt64) throws(Refusal) {
    guard size > 0, size & 4095 == 0, address & 4095 == 0, address <= UInt64.max - (size - 1) else {
      throw Refusal(errno: .invalidArgument, reason: "\(size) bytes at \(address) are not whole pages")
    }
  }

  /// The region of the descriptor's file, which is mapped here if it is new, was too short, or cannot be written where
  /// that is wanted.
  private func file(
    of descriptor: borrowing FileDescriptor, upTo end: UInt64, isWritten: Bool
  ) throws(Refusal) -> File {
    let known = try rethrowing(FileIdentity(of: descriptor.rawValue), as: Self.refusal)
    guard end <= known.byteCount else {
      throw Refusal(errno: .invalidArgument, reason: "it ends at byte \(end) of a file of \(known.byteCount)")
    }
    let found = state.withLock { state in
      state.files.last {
        $0.device == known.device && $0.inode == known.inode && end <= $0.byteCount && ($0.isWritable || !isWritten)
      }
    }
    if let found { return found }
    guard state.withLock({ $0.files.count }) < Self.maxFiles else {
      throw Refusal(errno: .noSpace, reason: "mappings are of \(Self.maxFiles) files already")
    }
    guard let byteCount = Int(exactly: known.byteCount) else {
      throw Refusal(errno: .invalidArgument, reason: "its file has \(known.byteCount) bytes")
    }
    var isWritable = true
    var mapping = try? HostMapping(descriptor: descriptor.rawValue, offset: 0, byteCount: byteCount)
    if mapping == nil {
      isWritable = false
      mapping = try rethrowing(
        HostMapping(descriptor: descriptor.rawValue, offset: 0, byteCount: byteCount, writable: false),
        as: Self.refusal)
    }
    guard let mapping else { throw Refusal(errno: .invalidArgument, reason: "its file cannot be mapped") }
    let base = state.withLock { $0.next }
    // A gap, so that no run goes from one file into the next.
    let (end, overflow) = base.addingReportingOverflow((known.byteCount + 0x1fff) & ~0xfff)
    guard !overflow else { throw Refusal(errno: .noSpace, reason: "its file is too large") }
    do throws(MemoryRegionError) {
      try memory.add(
        MemoryRegion(guestAddress: GuestAddress(base), byteCount: known.byteCount, mapping: mapping))
    } catch {
      throw Refusal(errno: .invalidArgument, reason: "\(error)")
    }
    let new = File(
      device: known.device, inode: known.inode, isWritable: isWritable, base: base, byteCount: known.byteCount)
    state.withLock { state in
      state.files.append(new)
      state.next = end
    }
    return new
  }

  private static func refusal(_ error: MappingError) -> Refusal {
    Refusal(errno: Errno(rawValue: error.code), reason: "its file cannot be mapped")
  }
}
