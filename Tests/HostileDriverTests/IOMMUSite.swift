import DMA
import IOMMUInterface
import Virtio
import VirtioIOMMU
import VirtioTestKit

/// What is behind a virtio-iommu under attack: endpoints that a correct driver uses, whose mappings no attack may
/// change, one to attack with, and one to see afterwards whether the device works.
enum IOMMUSite {
  /// Endpoints, and the domain of each.
  static let witness: (endpoint: UInt32, domain: UInt32) = (8, 2)
  static let bypassing: (endpoint: UInt32, domain: UInt32) = (9, 3)
  static let working: (endpoint: UInt32, domain: UInt32) = (10, 4)
  static let attacked: (endpoint: UInt32, domain: UInt32) = (11, 5)
  /// Mappings of the witness: two pages to read and write, and one to read; of the attacked domain four pages.
  static let mapped: (virtual: UInt64, physical: UInt64) = (0x10_0000, 0xc_0000)
  static let readOnly: (virtual: UInt64, physical: UInt64) = (0x10_4000, 0xc_4000)
  static let prey: (virtual: UInt64, physical: UInt64) = (0x20_0000, 0xe_0000)
  /// A page that is looked up outside all mappings, and two that are mapped to see whether that works.
  static let bypassed: UInt64 = 0xd_0000
  static let trial: (virtual: UInt64, physical: UInt64) = (0x40_0000, 0xf_0000)
  static let reserved: ClosedRange<UInt64> = 0xfee0_0000...0xfeef_ffff
  static let probeSize = 64

  static var options: IOMMUOptions {
    var options = IOMMUOptions()
    options.bypass = .configured(false)
    options.inputRange = 0x1_0000...0xffff_ffff
    options.domainRange = 2...9
    options.probeSize = UInt32(probeSize)
    options.reservedMemory = [IOMMUReservedMemory(reserved, .msi)]
    options.maxDomains = 4
    options.maxMappingsPerDomain = 16
    options.maxMappings = 20
    options.ownRequester = Target.requester
    return options
  }

  static func plug(into unit: IOMMUDevice, _ memory: GuestMemory) -> [UInt32: EndpointSpace] {
    var endpoints: [UInt32: EndpointSpace] = [:]
    for number in 8..<13 as Range<UInt32> {
      let endpoint = EndpointSpace(memory, requester: RequesterID(rawValue: UInt16(number)), isOpen: true)
      unit.adopt(endpoint)
      endpoints[number] = endpoint
    }
    return endpoints
  }
}

/// The device-readable parts of §5.13.6's requests, byte by byte.
enum IOMMUBytes {
  static func le<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<MemoryLayout<T>.size).map { UInt8(truncatingIfNeeded: value >> T(8 * $0)) }
  }
  static func attach(_ domain: UInt32, _ endpoint: UInt32, flags: UInt32 = 0, reserved: UInt32 = 0) -> [UInt8] {
    [1, 0, 0, 0] + le(domain) + le(endpoint) + le(flags) + le(reserved)
  }
  static func detach(_ domain: UInt32, _ endpoint: UInt32, reserved: UInt64 = 0) -> [UInt8] {
    [2, 0, 0, 0] + le(domain) + le(endpoint) + le(reserved)
  }
  static func map(_ domain: UInt32, _ first: UInt64, _ last: UInt64, _ physical: UInt64, flags: UInt32 = 3) -> [UInt8] {
    [3, 0, 0, 0] + le(domain) + le(first) + le(last) + le(physical) + le(flags)
  }
  static func unmap(_ domain: UInt32, _ first: UInt64, _ last: UInt64, reserved: UInt32 = 0) -> [UInt8] {
    [4, 0, 0, 0] + le(domain) + le(first) + le(last) + le(reserved)
  }
  static func probe(_ endpoint: UInt32, reserved: UInt8 = 0) -> [UInt8] {
    [5, 0, 0, 0] + le(endpoint) + [UInt8](repeating: reserved, count: 64)
  }
}

/// What a virtio-iommu says that it has.
struct IOMMUInventory: Equatable {
  var domains: [UInt32]
  var attachments: [RequesterID: UInt32?]
  var mappings: [Int?]
}

extension Target {
  var inventory: IOMMUInventory? {
    unit.map { unit in
      IOMMUInventory(
        domains: unit.domains, attachments: unit.attachments, mappings: unit.domains.map { unit.mappings(of: $0) })
    }
  }

  /// The byte that an endpoint finds at an address; nil: it is refused.
  func look(_ number: UInt32, _ address: UInt64, _ access: DMAAccess = .read) -> UInt8? {
    guard let space = endpoints[number] else { return nil }
    var view = DeviceView(space)
    return try? view.bytes(address, 1, access).get()[0]
  }

  func byte(_ physical: UInt64) -> UInt8? { literal.read(1, at: DMAAddress(physical)).first }

  /// Whether an endpoint reaches the whole of a page under an address, and nothing else there.
  func reaches(_ number: UInt32, _ virtual: UInt64, _ physical: UInt64, _ access: DMAAccess = .read) -> Bool {
    [0, 1, 0x7ff, 0xfff].allSatisfy { look(number, virtual + $0, access) == byte(physical + $0) }
  }
}
