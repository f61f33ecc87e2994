internal import HostIO
internal import SocketMessages
internal import VhostUser
internal import Virtio

/// What the front-end has said about one virtqueue. Whether it runs is the runner's knowledge.
struct Vring {
  /// Descriptors; nil until SET_VRING_NUM.
  var size: UInt16?
  var address: VringAddress?
  /// Where to go on: SET_VRING_BASE, or where the queue was when it stopped.
  var state = QueueState(used: nil)
  var kick: EventFD?
  var call: EventFD?
  /// SET_VRING_CALL came, with a descriptor or with the wish not to be called.
  var isCallSet = false
  /// Without a kick descriptor: the ring is polled.
  var isPolled = false
  /// Between SET_VRING_KICK (or VRING_KICK) and GET_VRING_BASE.
  var isStarted = false
  /// SET_VRING_ENABLE.
  var isEnabled = false
  /// As it was described last it cannot run.
  var isRefused = false
}

/// Where a virtqueue is, as SET_VRING_BASE and GET_VRING_BASE say it ("vring descriptor indices").
extension QueueState {
  /// Reads an index. A split ring's used index is in the ring itself.
  init(base: UInt32, packed: Bool, size: UInt16?) throws(ProtocolError) {
    let low = UInt16(truncatingIfNeeded: base)
    let high = UInt16(truncatingIfNeeded: base >> 16)
    if packed {
      self.init(
        available: low & 0x7fff, availableWrap: low & 0x8000 != 0, used: high & 0x7fff, usedWrap: high & 0x8000 != 0)
      if let size, available >= size || used ?? 0 >= size {
        throw ProtocolError("SET_VRING_BASE", "index \(available) or \(used ?? 0) is not below the ring's size \(size)")
      }
    } else {
      // The upper half is reserved; front-ends that restore a packed index by mistake show there.
      guard high == 0 else {
        throw ProtocolError("SET_VRING_BASE", "index \(base) of a split ring is more than 16 bits")
      }
      self.init(available: low, used: nil)
    }
  }

  /// The index as a message carries it.
  func base(packed: Bool) -> UInt32 {
    guard packed else { return UInt32(available) }
    let low = UInt32(available & 0x7fff) | (availableWrap ? 0x8000 : 0)
    let high = UInt32((used ?? 0) & 0x7fff) | (usedWrap ? 0x8000 : 0)
    return low | high << 16
  }
}
