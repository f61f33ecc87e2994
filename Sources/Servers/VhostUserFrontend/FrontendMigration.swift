internal import DMA
internal import HostIO
internal import SocketMessages
internal import Synchronization
public import VhostUser

/// Memory in which a back-end writes down what is in flight, kept by the front-end across a back-end's death.
public final class FrontendInflight: Sendable {
  /// The memory's size and which queues it is for.
  public let description: InflightDescription
  let file: MemoryFile

  init(_ description: InflightDescription, _ file: consuming MemoryFile) {
    self.description = description
    self.file = file
  }

  /// Writes bytes into the memory, as a back-end that died would have left them. ``FrontendError/memory(_:)`` if they
  /// do not fit.
  public func overwrite(_ bytes: [UInt8], at offset: Int) throws(FrontendError) {
    let mapping = try mapped()
    guard offset >= 0, offset <= mapping.byteCount, bytes.count <= mapping.byteCount - offset else {
      throw .memory("\(bytes.count) bytes at \(offset) are not inside \(mapping.byteCount) bytes of in-flight memory")
    }
    _ = mapping.copy(bytes.span, to: offset)
  }

  /// What the memory holds now. ``FrontendError/memory(_:)`` if it cannot be mapped, or is more than 256 MiB.
  public func bytes() throws(FrontendError) -> [UInt8] {
    let mapping = try mapped()
    var bytes = [UInt8](repeating: 0, count: mapping.byteCount)
    var span = bytes.mutableSpan
    _ = mapping.copy(from: 0, into: &span)
    return bytes
  }

  private func mapped() throws(FrontendError) -> HostMapping {
    guard description.mmapSize <= 1 << 28 else {
      throw .memory("\(description.mmapSize) bytes of in-flight memory are too many to copy")
    }
    return try rethrowing(
      HostMapping(
        descriptor: file.descriptor.rawValue, offset: description.mmapOffset,
        byteCount: Int(clamping: description.mmapSize)),
      saying: { _ in
        FrontendError.memory("the in-flight memory cannot be mapped, so its file may be shorter than the back-end says")
      })
  }
}

/// A dirty log that a back-end marks: a bit a page of 4096 bytes, from guest address 0 on.
public final class FrontendLog: Sendable {
  private let file: MemoryFile
  private let bits: HostMapping
  /// Bytes of the log.
  public let byteCount: Int

  init(byteCount: Int) throws(FrontendError) {
    let file = try rethrowing(
      MemoryFile(name: "sluice-log", size: UInt64(clamping: byteCount)), as: FrontendError.host)
    bits = try rethrowing(
      HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: byteCount),
      as: { (error: MappingError) in FrontendError.host(HostError(error)) })
    self.file = file
    self.byteCount = byteCount
  }

  var descriptor: Int32 { file.descriptor.rawValue }

  /// The numbers of the pages marked so far.
  public var pages: [UInt64] {
    var bytes = [UInt8](repeating: 0, count: byteCount)
    var span = bytes.mutableSpan
    _ = bits.copy(from: 0, into: &span)
    var pages: [UInt64] = []
    for (place, byte) in bytes.enumerated() where byte != 0 {
      for bit in 0..<8 where byte >> bit & 1 == 1 { pages.append(UInt64(place * 8 + bit)) }
    }
    return pages
  }

  /// The numbers of the pages marked since the last time, which are unmarked: copy them then, and what is written
  /// meanwhile is marked again.
  public func takePages() -> [UInt64] {
    guard let cells = bits.cells(from: 0, byteCount: byteCount & ~7) else { return [] }
    var pages: [UInt64] = []
    for at in stride(from: 0, to: byteCount & ~7, by: 8) where cells.load64(at: at) != 0 {
      let word = UInt64(littleEndian: cells.exchange64(0, at: at))
      for bit in 0..<64 as Range<UInt64> where word >> bit & 1 == 1 { pages.append(UInt64(at) * 8 + bit) }
    }
    return pages
  }

  /// Clears all marks.
  public func clear() { _ = bits.copy([UInt8](repeating: 0, count: byteCount).span, to: 0) }
}

extension Frontend {
  /// Has the back-end make in-flight memory for `queueCount` queues of `queueSize` descriptors. ``install(_:)`` puts it
  /// to use.
  public func makeInflight(queueCount: UInt16, queueSize: UInt16) throws(FrontendError) -> FrontendInflight {
    try require(.inflightSharedMemory, "INFLIGHT_SHMFD", for: "GET_INFLIGHT_FD")
    var answer = try exchange(
      .getInflightDescriptor(
        InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: queueCount, queueSize: queueSize)))
    guard case .inflight(let description) = answer.reply, description.mmapSize > 0,
      let file = answer.descriptors.takeFirst()
    else {
      throw .refused("GET_INFLIGHT_FD", code: 1)
    }
    return FrontendInflight(description, MemoryFile(adopting: file))
  }

  /// Has the back-end use in-flight memory, its own or that of one that died.
  public func install(_ inflight: FrontendInflight) throws(FrontendError) {
    try require(.inflightSharedMemory, "INFLIGHT_SHMFD", for: "SET_INFLIGHT_FD")
    try send(.setInflightDescriptor(inflight.description), descriptors: [inflight.file.descriptor.rawValue])
  }

  /// Gives the back-end a log and switches logging on. Queues started from now on log their device areas too.
  ///
  /// - Parameter byteCount: nil for as many as all memory needs.
  public func startLogging(byteCount: Int? = nil) throws(FrontendError) -> FrontendLog {
    try require(.logSharedMemory, "LOG_SHMFD", for: "SET_LOG_BASE")
    let end = memory.regions.map { $0.guestAddress + $0.size }.max() ?? 0
    let log = try FrontendLog(byteCount: byteCount ?? max(4096, Int((end + 32767) / 32768)))
    let answer = try exchange(
      .setLogBase(LogArea(size: UInt64(clamping: log.byteCount), offset: 0)), descriptors: [log.descriptor])
    // What the answer holds is not defined: libvhost-user sends the request's first word back.
    guard case .value(let word) = answer.reply, word == 0 || word == UInt64(clamping: log.byteCount) else {
      throw .refused("SET_LOG_BASE", code: 1)
    }
    session.withLock { $0.logsUsed = true }
    try setFeatures(features.union(Self.logAllBit))
    return log
  }

  /// Switches logging off.
  public func stopLogging() throws(FrontendError) {
    try setFeatures(features.subtracting(Self.logAllBit))
    session.withLock { $0.logsUsed = false }
  }

  /// The state that the back-end has beyond rings and configuration; queues must be stopped.
  public func saveState() throws(FrontendError) -> [UInt8] {
    let ours = try beginTransfer(.save)
    var state: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    var none = FileDescriptorList()
    reading: while true {
      guard try rethrowing(ours.waitReadable(timeout: timeout), as: FrontendError.host) else {
        throw .timedOut("SET_DEVICE_STATE_FD")
      }
      var span = chunk.mutableSpan
      let received = try rethrowing(ours.receive(into: &span, descriptors: &none), as: FrontendError.host)
      switch received {
      case .bytes(let count): state += chunk[..<count]
      case .nothingYet: continue
      case .closed: break reading
      }
      guard state.count <= 1 << 28 else {
        throw .violation(ProtocolError("SET_DEVICE_STATE_FD", "a state of more than 256 MiB"))
      }
    }
    try checkTransfer()
    return state
  }

  /// Gives the back-end the state that another one saved; queues must not have been started.
  public func loadState(_ state: [UInt8]) throws(FrontendError) {
    let ours = try beginTransfer(.load)
    try rethrowing(ours.send(state.span, timeout: timeout), as: FrontendError.host)
    ours.shutdown()
    try checkTransfer()
  }

  private func beginTransfer(_ direction: DeviceStateTransfer.Direction) throws(FrontendError) -> UnixSocket {
    try require(.deviceState, "DEVICE_STATE", for: "SET_DEVICE_STATE_FD")
    let pair = try rethrowing(UnixSocket.pair(), as: FrontendError.host)
    var answer = try exchange(
      .setDeviceStateDescriptor(DeviceStateTransfer(direction: direction)), descriptors: [pair.1.rawValue])
    guard case .value(let word) = answer.reply, word & 0xff == 0 else { throw .refused("SET_DEVICE_STATE_FD", code: 1) }
    // The back-end may prefer a descriptor of its own: bit 8 clear and one beside the answer.
    if word & 0x100 == 0, let own = answer.descriptors.takeFirst() {
      do throws(HostError) { return try UnixSocket(adopting: own) } catch {
        throw .violation(
          ProtocolError(
            "SET_DEVICE_STATE_FD", "this front-end reads sockets only, and the back-end sent something else"))
      }
    }
    return pair.0
  }

  private func checkTransfer() throws(FrontendError) {
    let code = try ask(.checkDeviceState)
    guard code == 0 else { throw .refused("CHECK_DEVICE_STATE", code: code) }
  }
}
