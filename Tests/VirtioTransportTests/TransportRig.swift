import IOMMUInterface
import MachineKit
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// A device behind either transport, for what both have to do.
protocol TransportRig: AnyObject, QueueRig {
  var control: DeviceControl { get }
  /// Look-ups of queues, by the space that answered.
  var counts: LookUps { get }
  var isBehindIOMMU: Bool { get }
  func setIOMMU(_ iommu: (any IOMMU)?)
  /// The device's driver, which begins anew.
  func anyDriver() throws -> any DriverTransport
  /// Waits until the driver is told of a change of the configuration, or that the device needs a reset: why it was
  /// interrupted, of which bit 1 is such a change; 0: it was not.
  func causesOfChange(_ transport: any DriverTransport) -> UInt32
  /// A word of the offered features, as the registers show it.
  func offeredWord(_ word: UInt32) -> UInt32
  /// A word of the accepted features, as far as the registers show it.
  func acceptedWord(_ word: UInt32) -> UInt32
  /// The registers that enable and reset queue 0.
  var enableRegister: UInt32 { get }
  var resetRegister: UInt32 { get set }
}

/// Where a device is.
enum Place: String, CaseIterable {
  case pci, board

  /// - Parameter lateIOMMU: the IOMMU is not in front of the device yet.
  func rig(
    _ device: any VirtioDevice = EchoDevice(), _ choice: OnOffAuto = .on, iommu: PageIOMMU? = nil,
    lateIOMMU: Bool = false, backendTranslates: Bool = true
  ) throws -> any TransportRig {
    switch self {
    case .pci:
      let options = VirtioPCIOptions.with { ($0.iommuPlatform, $0.backendTranslates) = (choice, backendTranslates) }
      return try FunctionRig(device, options, iommu: iommu, lateIOMMU: lateIOMMU)
    case .board:
      let options = VirtioMMIOOptions.with { ($0.iommuPlatform, $0.backendTranslates) = (choice, backendTranslates) }
      return try BoardRig(device, options, iommu: iommu, lateIOMMU: lateIOMMU)
    }
  }
}

extension Place {
  /// A rig and its driver.
  func driven(
    _ device: any VirtioDevice = EchoDevice(), _ choice: OnOffAuto = .on, iommu: PageIOMMU? = nil,
    backendTranslates: Bool = true
  ) throws -> (any TransportRig, any DriverTransport) {
    let rig = try rig(device, choice, iommu: iommu, backendTranslates: backendTranslates)
    return (rig, try rig.anyDriver())
  }
}

extension TransportRig {
  /// A driver's twenty rounds, and a reset. Whether each echo came.
  func run(_ kind: RingKind, _ base: Features, scattered: Bool) throws -> Bool {
    let transport = try anyDriver()
    let features = kind.features(base)
    let (place, ring) = try running(transport, features, scattered: scattered, driver: kind.driver)
    for round in UInt8(0)..<20 where !echo(transport, place, ring, indirect: kind.indirect, seed: round) {
      return false
    }
    transport.status = []
    return true
  }

  /// Whether queues looked addresses up in one space alone: what an IOMMU translates if `path` is the platform's.
  func tookOnly(_ path: AddressPath) -> Bool {
    let (translated, physical) = (counts.translated.misses, counts.physical.misses)
    return path == .platform ? translated > 0 && physical == 0 : translated == 0 && physical > 0
  }

  /// A legacy driver with queue 0 running.
  func startLegacy(
    _ transport: any DriverTransport, _ features: Features = [], size: UInt16? = nil,
    driver: RingCase.Driver = .literal
  ) -> (QueuePlace, any LiteralRing) {
    transport.status = []
    transport.status = [.acknowledge, .driver]
    transport.accept(features)
    let place = legacyPlace(size ?? transport.maxQueueSize(0))
    let ring = place.ring(features, driver)
    transport.enableQueue(0, place.layout)
    transport.status = [.acknowledge, .driver, .driverOK]
    return (place, ring)
  }
}
