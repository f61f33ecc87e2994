internal import DMA
internal import HostIO
internal import Logging
internal import SocketMessages
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// Starting, stopping and changing virtqueues.
///
///     stopped ──SET_VRING_KICK, VRING_KICK──▶ started ──GET_VRING_BASE──▶ stopped
///
/// A ring runs while it is started and enabled; it needs features, a size, addresses and memory before that.
/// SET_FEATURES, SET_VRING_KICK and similar messages never stop one.
extension BackendSession {
  var isPacked: Bool { features.contains(.ringPacked) }
  var isTranslated: Bool { addressPath == .platform }

  private func check(_ index: UInt32, _ message: String) throws(ProtocolError) -> Int {
    guard index < vrings.count else { throw ProtocolError(message, "there is no virtqueue \(index)") }
    return Int(index)
  }

  // MARK: What a ring is

  func setSize(_ state: VringState) throws(ProtocolError) {
    let index = try check(state.index, "SET_VRING_NUM")
    let limit = device.maxQueueSizes[index]
    if !runner.isRunning(index) { vrings[index].size = nil }
    guard state.number > 0, state.number <= UInt32(limit) else {
      return refuse(
        index, about: index,
        ProtocolError("SET_VRING_NUM", "virtqueue \(index) has 1 to \(limit) descriptors, not \(state.number)"))
    }
    guard isPacked || state.number & (state.number - 1) == 0 else {
      return refuse(
        index, about: index,
        ProtocolError("SET_VRING_NUM", "the size of a split ring is a power of two, not \(state.number)"))
    }
    guard !runner.isRunning(index) || vrings[index].size == UInt16(state.number) else {
      throw ProtocolError("SET_VRING_NUM", "virtqueue \(index) runs")
    }
    vrings[index].size = UInt16(state.number)
  }

  func setAddress(_ address: VringAddress) throws(ProtocolError) -> BackendReply? {
    let index = try check(address.index, "SET_VRING_ADDR")
    guard address.flags & ~VringAddress.logUsed == 0 else {
      throw ProtocolError("SET_VRING_ADDR", "flags \(address.flags) are not known")
    }
    let old = vrings[index].address
    let isSame =
      old?.descriptorArea == address.descriptorArea && old?.driverArea == address.driverArea
      && old?.deviceArea == address.deviceArea
    // A running ring gets the same addresses again when logging begins or ends: it goes on.
    guard runner.isRunning(index), !isSame else {
      vrings[index].address = address
      startReady("SET_VRING_ADDR", about: index)
      return nil
    }
    return try stop([index]) { () throws(ProtocolError) in
      self.vrings[index].address = address
      self.startReady("SET_VRING_ADDR", about: index)
      return nil
    }
  }

  func setBase(_ state: VringState) throws(ProtocolError) {
    let index = try check(state.index, "SET_VRING_BASE")
    guard !runner.isRunning(index) else { throw ProtocolError("SET_VRING_BASE", "virtqueue \(index) runs") }
    vrings[index].state = try QueueState(base: state.number, packed: isPacked, size: vrings[index].size)
  }

  /// Stops a ring and says where it stopped. What is in flight is done first, or with GET_VRING_BASE_INFLIGHT left in
  /// the in-flight memory, as far as it can be called off. The ring's size, addresses and place stay.
  func getBase(_ state: VringState) throws(ProtocolError) -> BackendReply? {
    let index = try check(state.index, "GET_VRING_BASE")
    let manner: StopManner = protocolFeatures.contains(.vringBaseInflight) ? .handingOver : .finishing
    return try stop([index], manner) { () throws(ProtocolError) in
      self.forgetStart(index)
      return .vring(VringState(index: state.index, number: self.vrings[index].state.base(packed: self.isPacked)))
    }
  }

  // MARK: Notifications

  func setKick(_ vring: VringDescriptor, _ files: inout FileDescriptorList) throws(ProtocolError) {
    let index = try check(UInt32(vring.index), "SET_VRING_KICK")
    let kick = try event(&files, "SET_VRING_KICK")
    vrings[index].kick = kick
    vrings[index].isPolled = kick == nil && !protocolFeatures.contains(.inbandNotifications)
    vrings[index].isStarted = true
    if runner.isRunning(index) {
      try rethrowing(runner.setKick(index, kick), saying: { ProtocolError("SET_VRING_KICK", $0) })
      // A kick that went into the old descriptor is not lost.
      runner.kick(index)
    }
    updatePolling()
    startReady("SET_VRING_KICK", about: index)
  }

  func setCall(_ vring: VringDescriptor, _ files: inout FileDescriptorList) throws(ProtocolError) {
    let index = try check(UInt32(vring.index), "SET_VRING_CALL")
    vrings[index].call = try event(&files, "SET_VRING_CALL")
    vrings[index].isCallSet = true
    updateCall(index)
    // A ring that runs is called by `setCall`. A stopped one may have used buffers all the same, so the driver has to
    // check once; QEMU's own test of such disks waits for it.
    if !runner.isRunning(index) { vrings[index].call?.signal() }
  }

  func setError(_ vring: VringDescriptor, _ files: inout FileDescriptorList) throws(ProtocolError) {
    let index = try check(UInt32(vring.index), "SET_VRING_ERR")
    vringErrors.setError(index, try event(&files, "SET_VRING_ERR"))
  }

  func kick(_ state: VringState) throws(ProtocolError) {
    let index = try check(state.index, "VRING_KICK")
    guard protocolFeatures.contains(.inbandNotifications) else {
      throw ProtocolError("VRING_KICK", "INBAND_NOTIFICATIONS is not negotiated")
    }
    vrings[index].isStarted = true
    if runner.isRunning(index) { runner.kick(index) } else { startReady("VRING_KICK", about: index) }
  }

  /// Used buffers are announced through the call descriptor, else in band if that is negotiated and no descriptor was
  /// refused.
  func updateCall(_ index: Int) {
    if let call = vrings[index].call {
      runner.setCall(index, call)
    } else if protocolFeatures.contains(.inbandNotifications), !vrings[index].isCallSet {
      let channel = channel
      runner.setCall(index) {
        _ = channel.send(.vringCall(VringState(index: UInt32(index), number: 0)), awaiting: .nothing)
      }
    } else {
      runner.setCall(index, nil as EventFD?)
    }
  }

  func event(_ files: inout FileDescriptorList, _ message: String) throws(ProtocolError) -> EventFD? {
    guard let file = files.takeFirst() else { return nil }
    do throws(HostError) { return try EventFD(adopting: file) } catch { throw ProtocolError(message, "\(error)") }
  }

  // MARK: Running

  func setEnabled(_ state: VringState) throws(ProtocolError) -> BackendReply? {
    let index = try check(state.index, "SET_VRING_ENABLE")
    guard state.number <= 1 else { throw ProtocolError("SET_VRING_ENABLE", "\(state.number) is neither 0 nor 1") }
    vrings[index].isEnabled = state.number == 1
    guard vrings[index].isEnabled else { return try stop([index]) { nil } }
    startReady("SET_VRING_ENABLE", about: index)
    return nil
  }

  func disableAll() throws(ProtocolError) -> BackendReply? {
    for index in vrings.indices { vrings[index].isEnabled = false }
    return try stop(Array(vrings.indices)) { () throws(ProtocolError) in
      self.iotlb.flush()
      return nil
    }
  }

  /// Starts every ring that is started, enabled and described, and does not run. One that was refused is tried again
  /// when the message is about it, or about all of them (nil).
  func startReady(_ message: String, about concerned: Int?) {
    guard hasFeatures, !isOver else { return }
    for index in vrings.indices where vrings[index].isStarted && vrings[index].isEnabled && !runner.isRunning(index) {
      if vrings[index].isRefused, let concerned, concerned != index { continue }
      guard let size = vrings[index].size, let address = vrings[index].address else { continue }
      guard !table.memory.regions.isEmpty else {
        missesMemory(index)
        continue
      }
      start(index, size, address, message, concerned)
    }
  }

  private func start(_ index: Int, _ size: UInt16, _ address: VringAddress, _ message: String, _ concerned: Int?) {
    let path = addressPath
    let resolver = RingAddress(
      path: path, guestAddresses: protocolFeatures.contains(.guestAddresses), table: table)
    let isPacked = isPacked
    let layout: QueueLayout
    let piece: InflightPiece?
    do throws(ProtocolError) {
      layout = try resolver.layout(address, size: size, packed: isPacked, eventIndex: features.contains(.eventIndex))
      if let inflight, size > inflight.capacity {
        // Memory that another back-end made for what the front-end asked. A disk that works, and forgets what was in
        // flight when this process dies, is better than none.
        log.warning(
          """
          virtqueue \(index) runs without in-flight memory: there is room for \(inflight.capacity) of its \(size) \
          descriptors
          """
        )
        piece = nil
      } else {
        piece = try inflight?.piece(index, size: size, packed: isPacked)
      }
    } catch {
      return refuse(index, about: concerned, error)
    }
    // Before, not after: its first round may find the next thing wrong.
    vringErrors.forget(index)
    do throws(DeviceError) {
      try runner.start(
        QueueStart(
          index: index, layout: layout, features: features, space: path == .platform ? iotlb : physical,
          kick: vrings[index].kick, state: vrings[index].state,
          inflight: piece?.maker(packed: isPacked)))
    } catch {
      return refuse(index, about: concerned, ProtocolError(message, "virtqueue \(index) cannot start: \(error)"))
    }
    vrings[index].isRefused = false
    announcer.setSuspended(false)
    log.debug("virtqueue \(index) started: \(size) descriptors, \(path)")
  }

  /// Leaves a ring stopped that cannot run as it was described. The driver chooses its size and addresses, and must not
  /// be able to end the connection, and with it the disk of every later driver: the ring is broken until it is
  /// described anew. Only a message about this very ring fails: a message about another one was carried out.
  private func refuse(_ index: Int, about concerned: Int?, _ error: ProtocolError) {
    if concerned == index { refusal = error }
    vrings[index].isRefused = true
    if vringErrors.broke(index) { log.warning("virtqueue \(index) refused: \(error)") }
  }

  /// A ring that stands still is not started any more: after GET_VRING_BASE and a reset.
  func forgetStart(_ index: Int) {
    vrings[index].isStarted = false
    vrings[index].kick = nil
    vrings[index].isPolled = false
    updatePolling()
  }

  /// Polls rings without a kick descriptor a thousand times a second.
  func updatePolling() {
    let wanted = vrings.contains { $0.isPolled && $0.isStarted }
    if wanted == (pollTimer != nil) { return }
    if wanted {
      guard let timer = try? TimerFD() else { return }
      try? timer.arm(after: .milliseconds(1), repeating: .milliseconds(1))
      try? poller.add(timer.rawValue, token: Token.pollTimer)
      pollTimer = timer
    } else if let timer = pollTimer {
      try? poller.remove(timer.rawValue)
      pollTimer = nil
    }
  }
}
