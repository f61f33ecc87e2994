internal import DMA
internal import HostIO
internal import SocketMessages
internal import VhostUser
internal import Virtio

/// Memory, shared with the front-end, that remembers which requests are in flight: a back-end that takes over after
/// this one died finds them there ("Inflight I/O tracking").
///
/// One piece per virtqueue, each a multiple of 64 bytes, in the layout for its ring's format. Its contents are not
/// trusted: indices are checked before use, and loops are bounded.
///
/// A region made here has room for the device's largest rings, even if the front-end asked for less, and says so in a
/// block of its own behind the pieces: a front-end may hand it to the next process as what it asked for. Without such a
/// block, the pieces lie as the description says.
final class InflightRegion: Sendable {
  /// The front-end's description.
  let description: InflightDescription
  private let mapping: HostMapping
  private let shape: InflightShape?
  /// Descriptors of a ring that there is room for.
  var capacity: UInt16 { shape?.capacity ?? description.queueSize }

  /// Maps what SET_INFLIGHT_FD brought.
  init(_ description: InflightDescription, _ file: consuming FileDescriptor) throws(ProtocolError) {
    let message = "SET_INFLIGHT_FD"
    guard description.queueCount > 0, description.queueSize > 0, description.queueSize <= 32768 else {
      throw ProtocolError(message, "\(description.queueCount) virtqueues of \(description.queueSize) descriptors")
    }
    guard description.mmapSize > 0, description.mmapSize <= 1 << 32, description.mmapOffset % 64 == 0,
      description.mmapOffset <= UInt64(Int64.max) - description.mmapSize
    else { throw ProtocolError(message, "\(description.mmapSize) bytes at \(description.mmapOffset) cannot be mapped") }
    self.description = description
    let raw = file.rawValue
    let memory = MemoryFile(adopting: file)
    let size = try rethrowing(memory.size(), saying: { ProtocolError(message, $0) })
    guard size >= description.mmapOffset + description.mmapSize else {
      throw ProtocolError(message, "the file is too short")
    }
    mapping = try rethrowing(
      HostMapping(descriptor: raw, offset: description.mmapOffset, byteCount: Int(description.mmapSize)),
      as: { (error: MappingError) in ProtocolError(message, "it cannot be mapped: \(HostError(error))") })
    _ = consume memory
    shape = InflightShape(noted: mapping, queueCount: description.queueCount)
  }

  /// The memory of virtqueue `index`, whose ring has `size` descriptors: the queue's thread makes a recorder of it.
  func piece(_ index: Int, size: UInt16, packed: Bool) throws(ProtocolError) -> InflightPiece {
    guard index < Int(description.queueCount) else {
      throw ProtocolError("SET_INFLIGHT_FD", "it has no room for virtqueue \(index)")
    }
    guard size <= capacity else {
      throw ProtocolError(
        "SET_INFLIGHT_FD", "virtqueue \(index) has \(size) descriptors, and there is room for \(capacity)")
    }
    let bytes = InflightShape.pieceSize(capacity, packed: packed)
    let stride = shape?.stride ?? bytes
    guard bytes <= stride, index * stride + bytes <= mapping.byteCount else {
      throw ProtocolError("SET_INFLIGHT_FD", "\(mapping.byteCount) bytes have no room for virtqueue \(index)")
    }
    return InflightPiece(mapping: mapping, offset: index * stride, byteCount: bytes, size: size, capacity: capacity)
  }
}

/// One virtqueue's part of an ``InflightRegion``.
struct InflightPiece: Sendable {
  var mapping: HostMapping
  var offset: Int
  var byteCount: Int
  /// Descriptors in the ring.
  var size: UInt16
  /// Descriptors there is room for.
  var capacity: UInt16

  /// What makes a recorder for the ring's format, on the queue's thread.
  func maker(packed: Bool) -> @Sendable () -> sending any InflightRecorder {
    { recorder(packed: packed) }
  }

  private func recorder(packed: Bool) -> sending any InflightRecorder {
    guard let cells = mapping.cells(from: offset, byteCount: byteCount) else {
      preconditionFailure("a piece lies in its region")
    }
    return packed
      ? PackedInflight(cells, size: size, capacity: capacity) : SplitInflight(cells, size: size, capacity: capacity)
  }
}
