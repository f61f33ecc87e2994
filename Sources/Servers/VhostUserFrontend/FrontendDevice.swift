public import DMA
public import HostIO
internal import SocketMessages
public import VhostUser
public import Virtio

// Memory, configuration space and status.
extension Frontend {
  /// Sends the back-end all memory: region by region if it supports that, otherwise as one table.
  ///
  /// - Throws: ``FrontendError/memory(_:)`` for more regions than the back-end takes.
  public func share() throws(FrontendError) {
    let pieces = memory.pieces
    if protocolFeatures.contains(.configureMemorySlots) {
      let slots = try ask(.getMaxMemorySlots)
      guard pieces.count <= slots else {
        throw .memory("\(pieces.count) regions are more than the back-end's \(slots) slots")
      }
      for piece in pieces { try announce(piece) }
    } else {
      guard pieces.count <= 8 else { throw .memory("\(pieces.count) regions are more than a table's 8") }
      try send(
        .setMemoryTable(pieces.map { onWire($0.description) }), descriptors: pieces.map { $0.file.descriptor.rawValue })
      withExtendedLifetime(pieces) {}
    }
  }

  /// Sends the back-end one more region.
  public func add(_ region: RegionDescription) throws(FrontendError) {
    try require(.configureMemorySlots, "CONFIGURE_MEM_SLOTS", for: "ADD_MEM_REG")
    guard let piece = memory.pieces.first(where: { $0.description == region }) else { throw .memory("no such region") }
    try announce(piece)
  }

  /// Takes a region away from the back-end. When this returns it touches the region no more.
  public func remove(_ region: RegionDescription) throws(FrontendError) {
    try require(.configureMemorySlots, "CONFIGURE_MEM_SLOTS", for: "REM_MEM_REG")
    try send(.removeMemoryRegion(onWire(region)))
  }

  private func announce(_ piece: FrontendMemory.Piece) throws(FrontendError) {
    try send(.addMemoryRegion(onWire(piece.description)), descriptors: [piece.file.descriptor.rawValue])
  }

  /// With GPA_ADDRESSES a region's front-end address repeats its guest address.
  private func onWire(_ region: RegionDescription) -> RegionDescription {
    guard protocolFeatures.contains(.guestAddresses) else { return region }
    var region = region
    region.frontendAddress = region.guestAddress
    return region
  }

  /// How many regions the back-end takes at once.
  public func maxMemorySlots() throws(FrontendError) -> UInt64 {
    try require(.configureMemorySlots, "CONFIGURE_MEM_SLOTS", for: "GET_MAX_MEM_SLOTS")
    return try ask(.getMaxMemorySlots)
  }

  /// Bytes of the configuration space (§2.5).
  public func readConfiguration(at offset: Int = 0, count: Int) throws(FrontendError) -> [UInt8] {
    try require(.configuration, "CONFIG", for: "GET_CONFIG")
    let wanted = ConfigurationBytes(
      offset: UInt32(truncatingIfNeeded: offset), bytes: [UInt8](repeating: 0, count: max(0, count)))
    guard case .configuration(let answer) = try exchange(.getConfiguration(wanted)).reply, let answer else {
      throw .refused("GET_CONFIG", code: 1)
    }
    guard answer.bytes.count == count, answer.offset == wanted.offset else {
      throw .violation(ProtocolError("GET_CONFIG", "the answer is for other bytes than were asked for"))
    }
    return answer.bytes
  }

  /// Writes the configuration space (§2.5).
  public func writeConfiguration(at offset: Int, _ bytes: [UInt8], isMigration: Bool = false) throws(FrontendError) {
    try require(.configuration, "CONFIG", for: "SET_CONFIG")
    try send(
      .setConfiguration(
        ConfigurationBytes(
          offset: UInt32(truncatingIfNeeded: offset), flags: isMigration ? ConfigurationBytes.migration : 0,
          bytes: bytes)))
  }

  /// Signalled when the back-end says that the configuration space changed.
  public var configurationChanged: EventFD { translator.configurationChanged }

  /// Passes the device status on (§2.1).
  public func setStatus(_ status: DeviceStatus) throws(FrontendError) {
    try require(.status, "STATUS", for: "SET_STATUS")
    try send(.setStatus(UInt64(status.rawValue)))
  }

  /// The device status (§2.1).
  public func status() throws(FrontendError) -> DeviceStatus {
    try require(.status, "STATUS", for: "GET_STATUS")
    return DeviceStatus(rawValue: UInt8(truncatingIfNeeded: try ask(.getStatus)))
  }

  /// Resets the device: with RESET_DEVICE, or by status 0, as negotiated.
  public func reset() throws(FrontendError) {
    if protocolFeatures.contains(.resetDevice) { return try send(.resetDevice) }
    try setStatus([])
  }

  // MARK: Translations

  /// What happened on the back-end's channel so far.
  public var counts: FrontendCounts { translator.counts }

  /// Decides about each miss from now on. `policy` is called on the front-end's thread.
  public func onMiss(_ policy: @escaping @Sendable (IOTLBMessage) -> MissAnswer) { translator.setPolicy(policy) }

  /// How much of a mapping an UPDATE has: nil for all, otherwise the aligned block of so many bytes (a power of two)
  /// around the miss. QEMU's is 4096.
  public func setUpdateGranule(_ bytes: UInt64?) { translator.setGranule(bytes) }

  /// Answers the misses that the policy held.
  public func releaseHeldMisses() { translator.release() }

  /// Signalled when a miss was held.
  public var missHeld: EventFD { translator.missHeld }
  /// Signalled when the back-end says that an access failed (ACCESS_FAIL).
  public var accessFailed: EventFD { translator.accessFailed }

  /// Maps guest memory. The back-end gets the mapping when it asks, or at once with `announcing`; then this waits for
  /// its acknowledgement.
  public func map(_ mapping: FrontendMapping, announcing: Bool = false) throws(FrontendError) {
    guard mappings.insert(mapping) else {
      throw .misuse("the mapping is empty, overlaps another or passes the address space's end")
    }
    if announcing { try announce(mapping) }
  }

  /// Sends the UPDATE of a mapping, asked for or not, and waits for its acknowledgement.
  public func announce(_ mapping: FrontendMapping) throws(FrontendError) {
    guard let update = translator.update(mapping, around: mapping.address.rawValue) else {
      throw .misuse("the mapping leads to no memory")
    }
    try sendTranslation(update)
  }

  /// Takes mappings away and returns when the back-end says that nothing uses them any more (R110).
  public func unmap(from first: DMAAddress, through last: DMAAddress) throws(FrontendError) {
    translator.unmap(from: first, through: last)
    try invalidate(from: first, through: last)
  }

  /// Sends an INVALIDATE and waits for its acknowledgement. All 2^64 bytes are sent as QEMU would not, with size 0
  /// (R108).
  public func invalidate(from first: DMAAddress, through last: DMAAddress) throws(FrontendError) {
    try sendTranslation(
      IOTLBMessage(
        // An INVALIDATE's other fields mean nothing; QEMU sends stack contents in them.
        kind: .invalidate, address: first.rawValue, size: last.rawValue &- first.rawValue &+ 1,
        frontendAddress: 0xdead_beef_dead_beef, permission: IOTLBMessage.Permission(rawValue: 178)))
  }

  /// Sends any translation message and waits for its acknowledgement. Misses are answered meanwhile.
  public func sendTranslation(_ message: IOTLBMessage) throws(FrontendError) {
    translator.count { counts in
      switch message.kind {
      case .update: counts.updates += 1
      case .invalidate: counts.invalidations += 1
      default: break
      }
    }
    guard case .value(let code) = try exchange(.iotlb(message), needsReply: true).reply, code == 0 else {
      throw .refused("IOTLB_MSG", code: 1)
    }
  }
}
