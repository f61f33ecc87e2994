internal import HostIO
internal import Logging
internal import SocketMessages
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// What each request does. A request either takes effect or throws and leaves things as they were.
extension BackendSession {
  /// Everything that a device with no messages of its own can use.
  static let offeredProtocolFeatures: ProtocolFeatures = [
    .multiqueue, .logSharedMemory, .replyAck, .backendRequests, .configuration, .backendSendDescriptor,
    .inflightSharedMemory, .resetDevice, .inbandNotifications, .configureMemorySlots, .status, .deviceState,
    .vringBaseInflight, .guestAddresses,
  ]

  /// The feature word that GET_FEATURES answers.
  var offeredWord: UInt64 {
    options.features(of: device).union(Features(word: VhostFeature.logAll | VhostFeature.protocolFeatures)).word
  }

  /// Legacy bits that QEMU passes on from a guest that was never offered them. They promise nothing that a device of
  /// virtio 1 does not do anyway, and refusing them would cost that guest its disk: they are ignored.
  private static let toleratedWord = Features([.notifyOnEmpty, .anyLayout]).word

  /// Carries a request out. Returns its answer if it has one of its own; descriptors for the answer go into `outgoing`.
  func serve(
    _ request: FrontendRequest, _ files: inout FileDescriptorList, _ outgoing: inout FileDescriptorList
  ) throws(ProtocolError) -> BackendReply? {
    switch request {
    case .getFeatures: return .value(offeredWord)
    case .setFeatures(let word): try setFeatures(word)
    case .getProtocolFeatures: return .value(Self.offeredProtocolFeatures.rawValue)
    case .setProtocolFeatures(let features): try setProtocolFeatures(features)
    case .setOwner: return try setOwner()
    // Deprecated, and never to lose connection state: the rings stop having effects.
    case .resetOwner: return try disableAll()
    case .getQueueCount: return .value(UInt64(vrings.count))
    case .setMemoryTable(let regions): try setMemory(regions, &files)
    case .getMaxMemorySlots: return .value(UInt64(MemoryTable.slots))
    case .addMemoryRegion(let region): try addMemory(region, &files)
    case .removeMemoryRegion(let region): try removeMemory(region)
    case .setLogBase(let area): return try setLog(area, &files)
    case .setLogDescriptor: logEvent.set(try event(&files, "SET_LOG_FD"))
    case .setVringSize(let state): try setSize(state)
    case .setVringAddress(let address): return try setAddress(address)
    case .setVringBase(let state): try setBase(state)
    case .getVringBase(let state): return try getBase(state)
    case .setVringKick(let vring): try setKick(vring, &files)
    case .setVringCall(let vring): try setCall(vring, &files)
    case .setVringError(let vring): try setError(vring, &files)
    case .setVringEnable(let state): return try setEnabled(state)
    case .vringKick(let state): try kick(state)
    case .setBackendRequestDescriptor:
      try require(.backendRequests, "SET_BACKEND_REQ_FD")
      guard let file = files.takeFirst() else { return nil }
      try adoptChannel(file)
    case .iotlb(let message):
      guard isTranslated else {
        throw ProtocolError("IOTLB_MSG", "VIRTIO_F_ACCESS_PLATFORM is not negotiated")
      }
      arrived = try iotlb.change(message)
      return .success
    case .getConfiguration(let place): return try readConfiguration(place)
    case .setConfiguration(let bytes): try writeConfiguration(bytes)
    case .setStatus(let value): return try setStatus(value)
    case .getStatus:
      try require(.status, "GET_STATUS")
      return .value(status | (vringErrors.needsReset ? UInt64(DeviceStatus.needsReset.rawValue) : 0))
    case .resetDevice:
      try require(.resetDevice, "RESET_DEVICE")
      return try resetDevice()
    case .getInflightDescriptor(let wanted): return try makeInflight(wanted, &outgoing)
    case .setInflightDescriptor(let area): try setInflight(area, &files)
    case .setDeviceStateDescriptor(let transfer): return try beginTransfer(transfer, &files)
    case .checkDeviceState: return try checkTransfer()
    }
    return nil
  }

  func require(_ feature: ProtocolFeatures, _ message: String) throws(ProtocolError) {
    guard protocolFeatures.contains(feature) else {
      throw ProtocolError(message, "\(feature.names.joined()) is not negotiated")
    }
  }

  // MARK: Features

  private func setFeatures(_ word: UInt64) throws(ProtocolError) {
    let unknown = word & ~(offeredWord | Self.toleratedWord)
    guard unknown == 0 else {
      throw ProtocolError("SET_FEATURES", "bits \(Features(word: unknown).bits) were not offered")
    }
    let new = Features(word: word & ~(VhostFeature.logAll | VhostFeature.protocolFeatures | Self.toleratedWord))
    let negotiated = NegotiatedFeatures(new)
    if negotiated.addressPath == .platform {
      guard new.contains(.version1) else {
        throw ProtocolError("SET_FEATURES", "VIRTIO_F_ACCESS_PLATFORM without VIRTIO_F_VERSION_1")
      }
      // Without them a missing translation could neither be asked for nor be known to be missing (R122).
      guard protocolFeatures.isSuperset(of: [.backendRequests, .replyAck]) else {
        throw ProtocolError(
          "SET_FEATURES", "VIRTIO_F_ACCESS_PLATFORM needs the protocol features BACKEND_REQ and REPLY_ACK")
      }
    } else if options.accessPlatform == .on {
      throw ProtocolError(
        "SET_FEATURES",
        "VIRTIO_F_ACCESS_PLATFORM is not set, and this back-end insists on it: no IOMMU is in front of the device")
    }
    if new != features, vrings.indices.contains(where: { runner.isRunning($0) }) {
      throw ProtocolError("SET_FEATURES", "features cannot change while a ring runs")
    }
    if negotiated.addressPath != addressPath { iotlb.flush() }
    self.negotiated = negotiated
    featureWord = word
    hasFeatures = true
    device.accepted(new)
    applyLog()
    if word & VhostFeature.protocolFeatures == 0 {
      // There is no SET_VRING_ENABLE then.
      for index in vrings.indices { vrings[index].isEnabled = true }
    }
    startReady("SET_FEATURES", about: nil)
  }

  private func setProtocolFeatures(_ new: ProtocolFeatures) throws(ProtocolError) {
    let unknown = new.subtracting(Self.offeredProtocolFeatures)
    guard unknown.isEmpty else {
      throw ProtocolError("SET_PROTOCOL_FEATURES", "\(unknown.names.joined(separator: ", ")) was not offered")
    }
    if new.contains(.inbandNotifications), !new.isSuperset(of: [.backendRequests, .replyAck]) {
      throw ProtocolError("SET_PROTOCOL_FEATURES", "INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK")
    }
    if isTranslated, !new.isSuperset(of: [.backendRequests, .replyAck]) {
      throw ProtocolError(
        "SET_PROTOCOL_FEATURES", "VIRTIO_F_ACCESS_PLATFORM is in force and needs BACKEND_REQ and REPLY_ACK")
    }
    if new.contains(.vringBaseInflight), !new.contains(.inflightSharedMemory) {
      throw ProtocolError("SET_PROTOCOL_FEATURES", "GET_VRING_BASE_INFLIGHT needs INFLIGHT_SHMFD")
    }
    protocolFeatures = new
    vringErrors.setInBand(new.contains(.inbandNotifications))
    announcer.setWanted(new.isSuperset(of: [.configuration, .backendRequests]))
    for index in vrings.indices { updateCall(index) }
  }

  // MARK: Memory

  private func setMemory(_ regions: [RegionDescription], _ files: inout FileDescriptorList) throws(ProtocolError) {
    // Mappings lead into the memory that goes: they go first (R113). What comes is asked for again.
    iotlb.flush()
    try table.replace(with: regions, &files, guestAddresses: protocolFeatures.contains(.guestAddresses))
    startReady("SET_MEM_TABLE", about: nil)
  }

  private func addMemory(_ region: RegionDescription, _ files: inout FileDescriptorList) throws(ProtocolError) {
    try require(.configureMemorySlots, "ADD_MEM_REG")
    guard let file = files.takeFirst() else { return }
    try table.add(region, file, guestAddresses: protocolFeatures.contains(.guestAddresses))
    startReady("ADD_MEM_REG", about: nil)
  }

  private func removeMemory(_ region: RegionDescription) throws(ProtocolError) {
    try require(.configureMemorySlots, "REM_MEM_REG")
    iotlb.flush()
    try table.remove(region)
  }

  // MARK: Configuration, status, reset

  private func readConfiguration(_ place: ConfigurationBytes) throws(ProtocolError) -> BackendReply {
    try require(.configuration, "GET_CONFIG")
    var bytes = [UInt8](repeating: 0, count: place.bytes.count)
    var span = bytes.mutableSpan
    device.readConfiguration(at: Int(place.offset), into: &span)
    return .configuration(ConfigurationBytes(offset: place.offset, flags: place.flags, bytes: bytes))
  }

  private func writeConfiguration(_ place: ConfigurationBytes) throws(ProtocolError) {
    try require(.configuration, "SET_CONFIG")
    guard place.flags & ~ConfigurationBytes.migration == 0 else {
      throw ProtocolError("SET_CONFIG", "flags \(place.flags) are not known")
    }
    device.writeConfiguration(at: Int(place.offset), from: place.bytes.span)
  }

  private func setStatus(_ value: UInt64) throws(ProtocolError) -> BackendReply? {
    try require(.status, "SET_STATUS")
    guard value <= 0xff else { throw ProtocolError("SET_STATUS", "status \(value) has more than eight bits") }
    status = value
    // A reset of the device (§2.4). Where the rings were stays known: QEMU asks for it afterwards.
    guard value == 0 else { return nil }
    return try stop(Array(vrings.indices)) { () throws(ProtocolError) in
      for index in self.vrings.indices { self.forgetStart(index) }
      self.hasFeatures = false
      self.device.reset()
      self.iotlb.flush()
      return nil
    }
  }

  /// SET_OWNER. A connection that had an owner already carries another device from now on, as after `device_del` and
  /// `device_add` on one socket: the front-end sends everything anew, and the settings for the last device are void.
  /// Settings from before the owner is set stay, because they are for this one: protocol features, and the back-end's
  /// channel.
  private func setOwner() throws(ProtocolError) -> BackendReply? {
    defer { hasOwner = true }
    guard hasOwner else { return nil }
    log.info("the front-end begins anew on the same connection")
    return try stop(Array(vrings.indices)) { () throws(ProtocolError) in
      self.forgetDevice()
      self.sharing.renew()
      self.dropTransfer()
      try self.table.clear()
      return nil
    }
  }

  private func resetDevice() throws(ProtocolError) -> BackendReply? {
    try stop(Array(vrings.indices)) { () throws(ProtocolError) in
      self.forgetDevice()
      return nil
    }
  }

  /// As at the beginning. No ring runs.
  private func forgetDevice() {
    for index in vrings.indices {
      forgetStart(index)
      runner.setCall(index, nil as EventFD?)
      vringErrors.setError(index, nil)
      vringErrors.forget(index)
      vrings[index] = Vring()
      updateCall(index)
    }
    device.reset()
    iotlb.flush()
    hasFeatures = false
    negotiated = NegotiatedFeatures(Features(word: 0))
    featureWord = 0
    status = 0
    dirtyLog = nil
    applyLog()
    logEvent.set(nil)
    // What it says about positions is history, and a front-end that goes on with it passes it again.
    inflight = nil
    updatePolling()
  }
}
