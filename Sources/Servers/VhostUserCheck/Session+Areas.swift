internal import DMA
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

/// Device addresses that the driver gave the device, and what it has to do there.
struct SessionArea {
  var name: String
  var range: ClosedRange<UInt64>
  /// The least a back-end needs; it may ask for more.
  var access: IOTLBMessage.Permission
}

extension Session {
  /// Everything that a translation can be asked for.
  var areas: [SessionArea] {
    let packed = frontend.features.contains(.ringPacked)
    var list: [SessionArea] = []
    func add(_ name: String, _ address: DMAAddress, _ count: Int, _ access: IOTLBMessage.Permission) {
      guard count > 0 else { return }
      list.append(
        SessionArea(name: name, range: address.rawValue...address.rawValue + UInt64(count - 1), access: access))
    }
    for ring in rings {
      let bytes = ring.layout.byteCounts(packed: packed, eventIndex: frontend.features.contains(.eventIndex))
      // A packed ring's descriptors may be read before they are written to.
      add("the descriptor area of queue \(ring.index)", ring.layout.descriptorArea, bytes.descriptor, .read)
      add("the driver area of queue \(ring.index)", ring.layout.driverArea, bytes.driver, .read)
      // A used ring's index may be read before it is written.
      add("the device area of queue \(ring.index)", ring.layout.deviceArea, bytes.device, [])
    }
    let request = context.device.request
    for i in pieces.indices {
      add("a buffer", pieces[i], pieceCount(i), i < request.readable.count ? .read : .write)
    }
    return list
  }

  /// Bytes of the probe's piece `i`.
  func pieceCount(_ i: Int) -> Int {
    let request = context.device.request
    return i < request.readable.count ? request.readable[i].count : request.writable[i - request.readable.count]
  }

  /// The pages of the indirect tables of the probe's queue.
  var tablePages: [DMAAddress] {
    guard let tables = ring.tables else { return [] }
    return pages(tables, Int(ring.layout.size) * ProbeRing.tableCapacity * 16)
  }

  /// The device pages that `count` bytes touch.
  func pages(_ address: DMAAddress, _ count: Int) -> [DMAAddress] {
    let first = address.rawValue / DeviceSpace.page
    let last = (address.rawValue + UInt64(count - 1)) / DeviceSpace.page
    return (first...last).map { DMAAddress($0 * DeviceSpace.page) }
  }

  /// The pages of the probe ring's descriptor, driver and device area.
  var ringPages: (descriptor: [DMAAddress], driver: [DMAAddress], device: [DMAAddress]) { pages(of: ring) }

  /// The pages of a ring's descriptor, driver and device area.
  func pages(of ring: ProbeRing) -> (descriptor: [DMAAddress], driver: [DMAAddress], device: [DMAAddress]) {
    let layout = ring.layout
    let bytes = layout.byteCounts(
      packed: frontend.features.contains(.ringPacked), eventIndex: frontend.features.contains(.eventIndex))
    return (
      pages(layout.descriptorArea, bytes.descriptor), pages(layout.driverArea, bytes.driver),
      pages(layout.deviceArea, bytes.device)
    )
  }
}
