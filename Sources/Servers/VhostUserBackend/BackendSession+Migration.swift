internal import DMA
internal import HostIO
internal import Logging
internal import SocketMessages
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// What outlives this process or this machine: the dirty log, requests in flight, the device's own state.
extension BackendSession {
  // MARK: The dirty log

  func setLog(_ area: LogArea, _ files: inout FileDescriptorList) throws(ProtocolError) -> BackendReply {
    try require(.logSharedMemory, "SET_LOG_BASE")
    guard let file = files.takeFirst() else { return .failure }
    guard area.size > 0, area.size <= UInt64(Int64.max), area.offset <= UInt64(Int64.max) - area.size else {
      throw ProtocolError("SET_LOG_BASE", "\(area.size) bytes at \(area.offset) are not part of a file")
    }
    let bits = try rethrowing(
      HostMapping(descriptor: file.rawValue, offset: area.offset, byteCount: Int(area.size)),
      as: { (error: MappingError) in
        ProtocolError("SET_LOG_BASE", "the log cannot be mapped: \(HostError(error))")
      })
    let logEvent = logEvent
    dirtyLog = DirtyLog(bits: bits, memory: table.memory) { logEvent.signal() }
    applyLog()
    return .success
  }

  /// Queues mark what they write while VHOST_F_LOG_ALL is set and there is a log. Rings go on meanwhile.
  func applyLog() {
    table.memory.setDirtyLog(featureWord & VhostFeature.logAll != 0 ? dirtyLog : nil)
  }

  // MARK: Requests in flight

  func makeInflight(
    _ wanted: InflightDescription, _ outgoing: inout FileDescriptorList
  ) throws(ProtocolError) -> BackendReply {
    try require(.inflightSharedMemory, "GET_INFLIGHT_FD")
    guard wanted.queueCount > 0, Int(wanted.queueCount) <= vrings.count, wanted.queueSize > 0, wanted.queueSize <= 32768
    else {
      throw ProtocolError("GET_INFLIGHT_FD", "\(wanted.queueCount) virtqueues of \(wanted.queueSize) descriptors")
    }
    // Before features are set either format may come: packed needs more.
    let isPacked = !hasFeatures ? device.features.contains(.ringPacked) : isPacked
    // The front-end sends the size that it was configured with, but the driver may still be offered larger rings (QEMU
    // 10.0.13).
    let largest = device.maxQueueSizes.prefix(Int(wanted.queueCount)).max() ?? 0
    let shape = InflightShape(capacity: max(wanted.queueSize, largest), packed: isPacked)
    outgoing.append(
      try rethrowing(
        shape.makeFile(queueCount: wanted.queueCount).intoDescriptor(),
        saying: { ProtocolError("GET_INFLIGHT_FD", $0) }))
    return .inflight(
      InflightDescription(
        mmapSize: UInt64(shape.byteCount(queueCount: wanted.queueCount)), mmapOffset: 0, queueCount: wanted.queueCount,
        queueSize: shape.capacity))
  }

  func setInflight(_ area: InflightDescription, _ files: inout FileDescriptorList) throws(ProtocolError) {
    try require(.inflightSharedMemory, "SET_INFLIGHT_FD")
    guard let file = files.takeFirst() else { return }
    inflight = try InflightRegion(area, file)
  }

  // MARK: The device's own state

  func beginTransfer(
    _ wanted: DeviceStateTransfer, _ files: inout FileDescriptorList
  ) throws(ProtocolError) -> BackendReply {
    let message = "SET_DEVICE_STATE_FD"
    try require(.deviceState, message)
    guard let file = files.takeFirst() else { return .failure }
    guard !vrings.indices.contains(where: { runner.isRunning($0) }) else {
      throw ProtocolError(message, "a ring runs, and the device has to be suspended")
    }
    dropTransfer()
    do throws(HostError) {
      var new = try StateTransfer(wanted.direction, of: device, over: file)
      new.advance()
      // A file cannot be polled, nor has it to be.
      if new.result == nil { try poller.add(new.rawValue, token: Token.transfer, for: new.readiness) }
      isTransferWatched = new.result == nil
      transfer = new
    } catch {
      throw ProtocolError(message, "\(error)")
    }
    closeIfSaved()
    return .value(DeviceStateTransfer.noDescriptor)
  }

  func advanceTransfer() {
    transfer?.advance()
    if transfer?.result != nil { unwatchTransfer() }
    closeIfSaved()
  }

  /// How the transfer ended. Nil when that is not known yet: the answer is then due later, and only the front-end waits
  /// for it.
  func checkTransfer() throws(ProtocolError) -> BackendReply? {
    try require(.deviceState, "CHECK_DEVICE_STATE")
    advanceTransfer()
    if let isDone = takeOutcome() { return isDone ? .success : .failure }
    guard transfer != nil else { throw ProtocolError("CHECK_DEVICE_STATE", "no state was transferred") }
    do throws(HostError) {
      let timer = try TimerFD()
      try timer.arm(after: .seconds(10))
      try poller.add(timer.rawValue, token: Token.checkTimer)
      owed = .transfer(timer)
    } catch {
      throw ProtocolError("CHECK_DEVICE_STATE", "\(error)")
    }
    return nil
  }

  /// Sends the pending answer, if it is known or overdue.
  func answerCheck(_ stop: EventFD, isLate: Bool) throws(Ending) {
    guard case .transfer(let timer) = owed else { return }
    let outcome = takeOutcome()
    guard outcome != nil || isLate else { return }
    if outcome == nil {
      log.warning("device state not transferred: the front-end neither moved nor closed it for 10 s")
      dropTransfer()
    }
    try? poller.remove(timer.rawValue)
    owed = nil
    try send(
      outcome == true ? .success : .failure, to: FrontendRequest.Kind.checkDeviceState.rawValue, FileDescriptorList(),
      stop)
    try serveDeferred(stop)
  }

  private func takeOutcome() -> Bool? {
    if let saved = savedResult {
      savedResult = nil
      return saved
    }
    guard let transfer, let result = transfer.result else { return nil }
    unwatchTransfer()
    if !result { log.warning("device state not loaded: \(transfer.complaint)") }
    self.transfer = nil
    return result
  }

  /// Our end is closed as soon as everything is written: that is how the front-end knows.
  private func closeIfSaved() {
    guard let transfer, transfer.readiness == .writable, let result = transfer.result else { return }
    if !result { log.warning("device state not saved: \(transfer.complaint)") }
    savedResult = result
    self.transfer = nil
  }

  private func unwatchTransfer() {
    guard isTransferWatched, let transfer else { return }
    try? poller.remove(transfer.rawValue)
    isTransferWatched = false
  }

  func dropTransfer() {
    unwatchTransfer()
    transfer = nil
    savedResult = nil
  }
}
