import DMA
import IOMMUInterface
import MachineKit
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioServing
import VirtioTestKit

/// The registers as a processor reaches them.
final class Window: MMIORegisterAccess {
  private let device: VirtioMMIODevice
  /// Every access, in order.
  private(set) var accesses: [(at: UInt64, width: Int, isWrite: Bool)] = []

  init(_ device: VirtioMMIODevice) { self.device = device }

  func read(at offset: UInt64, width: Int) -> UInt32 {
    accesses.append((offset, width, false))
    return UInt32(truncatingIfNeeded: device.read(at: offset, width: width))
  }
  func write(at offset: UInt64, width: Int, _ value: UInt32) {
    accesses.append((offset, width, true))
    device.write(at: offset, width: width, UInt64(value))
  }
  subscript(_ at: UInt64) -> UInt32 {
    get { read(at: at, width: 4) }
    set { write(at: at, width: 4, newValue) }
  }
}

/// A virtio device on a board, and its driver.
final class BoardRig: TransportRig {
  let memory: GuestMemory
  let interrupts: InterruptLog
  let endpoint: DMAEndpoint
  let mmio: VirtioMMIODevice
  let window: Window
  let device: any VirtioDevice
  let iommu: PageIOMMU?
  /// No function's number: the machine has chosen it.
  static let requester = RequesterID(rawValue: 0xf00d)
  var requester: RequesterID { Self.requester }
  var control: DeviceControl { mmio.control }
  var counts: LookUps { endpoint.counts }
  var isBehindIOMMU: Bool { endpoint.isBehindIOMMU }

  init(
    _ device: any VirtioDevice = EchoDevice(), _ options: VirtioMMIOOptions = VirtioMMIOOptions(),
    iommu: PageIOMMU? = nil, lateIOMMU: Bool = false
  ) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    let interrupts = try InterruptLog()
    endpoint = DMAEndpoint(memory, requester: Self.requester)
    if let iommu, !lateIOMMU { endpoint.setIOMMU(iommu) }
    mmio = try VirtioMMIODevice(
      device, options, name: "test", at: endpoint, line: { interrupts.setLine($0) }, log: .silent)
    window = Window(mmio)
    self.interrupts = interrupts
    self.device = device
    self.iommu = iommu
  }

  func driver() throws -> MMIODriverTransport { try MMIODriverTransport(window) }

  func anyDriver() throws -> any DriverTransport { try driver() }
  func setIOMMU(_ iommu: (any IOMMU)?) { endpoint.setIOMMU(iommu) }
  func causesOfChange(_ transport: any DriverTransport) -> UInt32 {
    guard interrupts.poll({ interrupts.isLineAsserted }), let transport = transport as? MMIODriverTransport else {
      return 0
    }
    return UInt32(transport.takeInterrupts())
  }

  func offeredWord(_ word: UInt32) -> UInt32 {
    window[0x014] = word
    return window[0x010]
  }
  func acceptedWord(_ word: UInt32) -> UInt32 { control.driverFeatures(word: word) }
  var enableRegister: UInt32 { window[0x044] }
  var resetRegister: UInt32 {
    get { window[0x0c0] }
    set { window[0x0c0] = newValue }
  }

  func start(_ transport: any DriverTransport, _ place: QueuePlace) {
    transport.enableQueue(0, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
  }

  func waitForAnswer(_ transport: any DriverTransport, _ condition: () -> Bool) -> Bool {
    interrupts.poll {
      if interrupts.isLineAsserted { _ = (transport as? MMIODriverTransport)?.takeInterrupts() }
      return condition()
    }
  }
}

extension VirtioMMIOOptions {
  static var platform: VirtioMMIOOptions { .with { $0.iommuPlatform = .on } }
  static var old: VirtioMMIOOptions { .with { $0.legacy = true } }
  static func with(_ change: (inout VirtioMMIOOptions) -> Void) -> VirtioMMIOOptions {
    var options = VirtioMMIOOptions()
    change(&options)
    return options
  }
}
