internal import Virtio

// Kinds that other back-ends serve and Sluice does not.
extension DeviceProbe {
  /// A network interface (§5.1).
  static let network: DeviceProbe = {
    // No offloads; then a frame of the local experimental type 0x88b5, from and to a local address.
    let frame = Request(readable: [
      [UInt8](repeating: 0, count: 12),
      [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5] + [UInt8](repeating: 0x5a, count: 46),
    ])
    var probe = DeviceProbe("net", request: frame)
    (probe.queue, probe.queueCount, probe.countsQueuePairs) = (1, 2, true)
    (probe.writes, probe.ringsStopAlone) = (false, true)
    // Those that were dropped in virtio 1.0, too.
    probe.features = Set(0...23).subtracting([4])
    // CSUM, GUEST_CSUM, MAC, MRG_RXBUF, STATUS, CTRL_VQ, MQ.
    probe.usualFeatures = [0, 1, 5, 15, 16, 17, 22]
    return probe
  }()

  /// A file system (§5.11).
  static let fileSystem: DeviceProbe = {
    // FUSE_INIT of protocol 7.31: {length, opcode 26, unique 1, node, user, group, process, padding}, {major, minor,
    // 0, 0}.
    let hello = Request(readable: [words([56, 26, 1, 0, 0, 0, 0, 0, 0, 0]) + words([7, 31, 0, 0])], writable: [80])
    var probe = DeviceProbe("fs", request: hello) { answer in
      guard answer.written >= 16, answer.pieces[0][8...].prefix(8).elementsEqual([1, 0, 0, 0, 0, 0, 0, 0]) else {
        return "the answer is not one to FUSE_INIT"
      }
      return nil
    }
    (probe.queue, probe.queueCount) = (1, 2)
    probe.features = [0]
    return probe
  }()

  /// A socket device (§5.10).
  static let socket: DeviceProbe = {
    // A connection from context 3 to the host's port 9, which the host refuses or is not listening on.
    let connect = Request(readable: [words([3, 0, 2, 0, 4711, 9, 0]) + [1, 0, 1, 0] + words([0, 1 << 16, 0])])
    var probe = DeviceProbe("vsock", request: connect)
    (probe.queue, probe.queueCount) = (1, 3)
    probe.writes = false
    probe.features = [0, 1, 2]
    return probe
  }()
}
