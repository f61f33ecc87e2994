/// A kind of device that can be checked, by the name its back-end programs go under.
public enum CheckedDevice: String, CaseIterable, Sendable {
  /// A disk (§5.2). Nothing is ever written to it.
  case blk
  /// A source of random numbers (§5.4).
  case rng
  /// A network interface (§5.1).
  case net
  /// A file system (§5.11).
  case fs
  /// A socket device (§5.10).
  case vsock
}

/// One harmless request, the same every time.
struct ProbeRequest {
  var readable: [[UInt8]]
  /// Bytes of each device-writable piece.
  var writable: [Int]
  /// How many buffers it consists of.
  var pieces: Int { readable.count + writable.count }
}

extension CheckedDevice {
  /// The queue that requests go to.
  var queue: Int {
    switch self {
    case .blk, .rng: 0
    case .net, .fs, .vsock: 1
    }
  }

  /// How many queues a driver sets up before the device works.
  var queueCount: Int {
    switch self {
    case .blk, .rng: 1
    case .net, .fs: 2
    case .vsock: 3
    }
  }

  /// Whether the device writes into the first device-writable piece of a request, so that one can see where it writes.
  var writes: Bool {
    switch self {
    case .blk, .rng, .fs: true
    case .net, .vsock: false
    }
  }

  /// Queues a front-end may name: GET_QUEUE_NUM counts pairs for a network device.
  func queueLimit(_ count: Int) -> Int { self == .net ? 2 * count : count }

  var request: ProbeRequest {
    switch self {
    case .blk:
      // VIRTIO_BLK_T_IN of sector 0, and its status.
      ProbeRequest(readable: [[UInt8](repeating: 0, count: 16)], writable: [512, 1])
    case .rng:
      ProbeRequest(readable: [], writable: [512])
    case .net:
      // No offloads; then a frame of the local experimental type 0x88b5, from and to a local address.
      ProbeRequest(
        readable: [
          [UInt8](repeating: 0, count: 12),
          [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5] + [UInt8](repeating: 0x5a, count: 46),
        ], writable: [])
    case .fs:
      // FUSE_INIT of protocol 7.31: {length, opcode 26, unique 1, node, user, group, process, padding}, {major, minor,
      // 0, 0}.
      ProbeRequest(
        readable: [Self.words([56, 26, 1, 0, 0, 0, 0, 0, 0, 0]) + Self.words([7, 31, 0, 0])], writable: [80])
    case .vsock:
      // A connection from context 3 to the host's port 9, which the host refuses or is not listening on.
      ProbeRequest(
        readable: [Self.words([3, 0, 2, 0, 4711, 9, 0]) + [1, 0, 1, 0] + Self.words([0, 1 << 16, 0])], writable: [])
    }
  }

  /// Descriptors of a long ring, which devices of this kind are known to take.
  var longRing: UInt16 { self == .blk || self == .rng ? 1024 : 256 }

  /// Whether ``quickRequest(pieces:)`` can be of many pieces.
  var hasLongRequests: Bool { self == .blk || self == .rng }

  /// A harmless request that a device can answer at once, with nothing to wait for; of so many pieces, or of few.
  func quickRequest(pieces: Int) -> ProbeRequest {
    switch self {
    // VIRTIO_BLK_T_GET_ID: the serial, and its status.
    case .blk:
      ProbeRequest(
        readable: [[8] + [UInt8](repeating: 0, count: 15)],
        writable: [20] + [Int](repeating: 20, count: max(0, pieces - 3)) + [1])
    case .rng: ProbeRequest(readable: [], writable: [Int](repeating: 8, count: max(1, pieces)))
    case .net, .fs, .vsock: request
    }
  }

  private static func words(_ words: [UInt32]) -> [UInt8] {
    words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } }
  }

  /// What is wrong with an answer, or nil. `reference` is what the first answer held.
  func fault(written: UInt32, _ pieces: [[UInt8]], reference: [UInt8]?) -> String? {
    switch self {
    case .blk:
      guard pieces[1] == [0] else { return "the read's status is \(pieces[1][0])" }
      guard let reference, reference != pieces[0] else { return nil }
      return "the read brought other bytes than the first one did"
    case .rng:
      guard written > 0, written <= 512 else { return "\(written) bytes were written into a buffer of 512" }
      // Of 32 random bytes not all are the same.
      let written = Int(written) & ~31
      let holes = stride(from: 0, to: written, by: 32).filter { start in
        pieces[0][start..<start + 32].allSatisfy { $0 == Self.blank }
      }
      guard let hole = holes.first else { return nil }
      return holes.count == written / 32
        ? "nothing was written" : "nothing was written to the bytes from \(hole) on, of \(written)"
    case .fs:
      guard written >= 16, pieces[0][8...].prefix(8).elementsEqual([1, 0, 0, 0, 0, 0, 0, 0]) else {
        return "the answer is not one to FUSE_INIT"
      }
      return nil
    case .net, .vsock: return nil
    }
  }

  /// What pieces are filled with before a device writes to them.
  static let blank: UInt8 = 0xa5
}
