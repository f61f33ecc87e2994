import PCI
import Virtio

/// The virtio structures in a function's capability list (§4.1.4): the first of each kind.
struct PCIStructures {
  private var found: [PCITransport.Structure: (at: Int, location: PCIDriverTransport.Location)] = [:]
  private let access: any PCIFunctionAccess

  init(_ access: any PCIFunctionAccess) {
    self.access = access
    typealias Field = PCITransport.Capability
    for (at, id) in Self.capabilities(access) where id == PCICapabilityID.vendorSpecific {
      let bar = access.readConfiguration(at: at + Field.bar, width: 1)
      let type = UInt8(truncatingIfNeeded: access.readConfiguration(at: at + Field.type, width: 1))
      // Reserved types and BARs are not for us; of several, the device prefers the first.
      guard let structure = PCITransport.Structure(rawValue: type), bar < 6, found[structure] == nil,
        access.readConfiguration(at: at + 2, width: 1) >= Field.byteCount
      else { continue }
      let location = PCIDriverTransport.Location(
        bar: Int(bar), offset: UInt64(access.readConfiguration(at: at + Field.offset, width: 4)),
        length: UInt64(access.readConfiguration(at: at + Field.length, width: 4)))
      found[structure] = (at, location)
    }
  }

  /// Where capabilities are, and their IDs. A list that bites its tail ends all the same.
  static func capabilities(_ access: any PCIFunctionAccess) -> [(at: Int, id: UInt8)] {
    guard access.readConfiguration(at: PCIRegister.status, width: 2) & UInt32(PCIStatus.capabilitiesList) != 0 else {
      return []
    }
    var list: [(at: Int, id: UInt8)] = []
    var at = Int(access.readConfiguration(at: PCIRegister.capabilitiesPointer, width: 1) & 0xfc)
    while at >= PCIRegister.firstCapability, at <= 252, !list.contains(where: { $0.at == at }) {
      list.append((at, UInt8(truncatingIfNeeded: access.readConfiguration(at: at, width: 1))))
      at = Int(access.readConfiguration(at: at + 1, width: 1) & 0xfc)
    }
    return list
  }

  var isEmpty: Bool { found[.common] == nil }

  /// What a modern device has to have.
  func modern() throws(PCITransportError) -> PCIDriverTransport.Modern {
    // Everything up to the queue's addresses has been there from the start.
    let common = try required(.common, length: UInt64(PCITransport.CommonRegister.queueNotificationData))
    let notify = try required(.notify, length: 2)
    let isr = try required(.isr, length: 1)
    let multiplier = access.readConfiguration(at: notify.at + PCITransport.Capability.notifyMultiplier, width: 4)
    return PCIDriverTransport.Modern(
      common: common.location, notify: notify.location, isr: isr.location, device: found[.device]?.location,
      notifyMultiplier: multiplier)
  }

  private func required(
    _ structure: PCITransport.Structure, length: UInt64
  ) throws(PCITransportError) -> (at: Int, location: PCIDriverTransport.Location) {
    guard let one = found[structure], one.location.length >= length else { throw .missing(structure) }
    return one
  }
}
