internal import DMA
internal import SocketMessages
internal import VhostUser
internal import Virtio

/// Turns the addresses of SET_VRING_ADDR into the ones a queue works with: the only place where a front-end's own
/// addresses meet the device's.
///
/// | ACCESS_PLATFORM | GPA_ADDRESSES | the message's addresses are |
/// |---|---|---|
/// | negotiated | either | I/O virtual addresses, kept as they came (R040, R100) |
/// | not | negotiated | guest-physical |
/// | not | not | the front-end's own, looked up in the memory table |
struct RingAddress {
  var path: AddressPath
  var guestAddresses: Bool
  var table: MemoryTable

  /// Where the queue is.
  func layout(
    _ address: VringAddress, size: UInt16, packed: Bool, eventIndex: Bool
  ) throws(ProtocolError) -> QueueLayout {
    var layout = QueueLayout(
      size: size, descriptorArea: DMAAddress(address.descriptorArea), driverArea: DMAAddress(address.driverArea),
      deviceArea: DMAAddress(address.deviceArea))
    switch path {
    case .platform: return layout
    case .physical where guestAddresses: return layout
    case .physical:
      let counts = layout.byteCounts(packed: packed, eventIndex: eventIndex)
      layout.descriptorArea = try look(address.descriptorArea, counts.descriptor, "descriptor area")
      layout.driverArea = try look(address.driverArea, counts.driver, "driver area")
      layout.deviceArea = try look(address.deviceArea, counts.device, "device area")
      return layout
    }
  }

  private func look(_ address: UInt64, _ count: Int, _ area: String) throws(ProtocolError) -> DMAAddress {
    // An area may cross regions that follow each other in both address spaces; its ends show that.
    guard let first = table.guestAddress(of: FrontendAddress(address)),
      let last = table.guestAddress(of: FrontendAddress(address &+ UInt64(count - 1))),
      last.rawValue &- first.rawValue == UInt64(count - 1)
    else {
      throw ProtocolError(
        "SET_VRING_ADDR", "the \(area) is not in memory that is shared with this back-end. \(SharingAdvice.remedy)")
    }
    return DMAAddress(first.rawValue)
  }
}
