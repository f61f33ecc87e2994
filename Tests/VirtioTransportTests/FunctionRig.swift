import DMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// A function as its driver reaches it: through the bus, at the addresses that firmware gave it.
final class BusAccess: PCIFunctionAccess {
  private let inner: PCIBusAccess
  var requester: RequesterID { inner.requester }
  /// Widths of the notifications, and what they were, seen on their way.
  private(set) var writes: [(bar: Int, offset: UInt64, width: Int, value: UInt32)] = []

  init(_ inner: PCIBusAccess) { self.inner = inner }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 { inner.readConfiguration(at: offset, width: width) }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    inner.writeConfiguration(at: offset, width: width, value)
  }
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 { inner.readBAR(index, at: offset, width: width) }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    if inner.windows.contains(where: { $0.index == index }) { writes.append((index, offset, width, value)) }
    inner.writeBAR(index, at: offset, width: width, value)
  }
}

/// A virtio function on a bus, with firmware done, and its driver.
final class FunctionRig: TransportRig {
  let machine: TestMachine
  let function: VirtioPCIFunction
  let access: BusAccess
  let iommu: PageIOMMU?
  let device: any VirtioDevice
  /// The function's place: 00:03.0.
  let slot = PCISlot(3)
  var memory: GuestMemory { machine.memory }
  var interrupts: InterruptLog { machine.interrupts }
  var bus: PCIBus { machine.bus }
  var requester: RequesterID { access.requester }
  var control: DeviceControl { function.control }
  var counts: LookUps { machine.masters[0].counts }
  var isBehindIOMMU: Bool { machine.masters[0].isBehindIOMMU }
  static let messageAddress: UInt64 = 0xfee0_0000

  /// - Parameter lateIOMMU: the IOMMU is not in front of the function yet.
  init(
    _ device: any VirtioDevice = EchoDevice(), _ options: VirtioPCIOptions = VirtioPCIOptions(),
    iommu: PageIOMMU? = nil, lateIOMMU: Bool = false
  ) throws {
    machine = try TestMachine(iommu: lateIOMMU ? nil : iommu)
    function = try machine.add(device, options, at: slot)
    machine.enumerate()
    access = BusAccess(try machine.access())
    self.iommu = iommu
    self.device = device
  }

  /// The driver of the function, with a message for the configuration (data 0x20) and each queue (0x21 and up).
  func driver(messages: Bool = true, legacy: Bool = false) throws -> PCIDriverTransport {
    let transport = try PCIDriverTransport(access, legacy: legacy)
    if messages {
      let all = (0...function.control.queueCount).map {
        InterruptMessage(address: Self.messageAddress, data: 0x20 + UInt32($0))
      }
      #expect(transport.enableMSIX(all))
    }
    return transport
  }

  func anyDriver() throws -> any DriverTransport { try driver() }
  func setIOMMU(_ iommu: (any IOMMU)?) { bus.setIOMMU(iommu) }
  func causesOfChange(_ transport: any DriverTransport) -> UInt32 {
    interrupts.wait { interrupts.data.contains(0x20) } ? 2 : 0
  }

  // The common configuration is at the start of BAR 4.
  private func word(_ word: UInt32, select: UInt64, at offset: UInt64) -> UInt32 {
    access.writeBAR(4, at: select, width: 4, word)
    return access.readBAR(4, at: offset, width: 4)
  }
  func offeredWord(_ word: UInt32) -> UInt32 { self.word(word, select: 0, at: 4) }
  func acceptedWord(_ word: UInt32) -> UInt32 { self.word(word, select: 8, at: 12) }
  var enableRegister: UInt32 { access.readBAR(4, at: 28, width: 2) }
  var resetRegister: UInt32 {
    get { access.readBAR(4, at: 58, width: 2) }
    set { access.writeBAR(4, at: 58, width: 2, newValue) }
  }

  /// The queue's calls come on vector 1.
  func start(_ transport: any DriverTransport, _ place: QueuePlace) {
    guard let transport = transport as? PCIDriverTransport else { preconditionFailure("another transport's driver") }
    start(transport, place, vectors: true)
  }
  func start(_ transport: PCIDriverTransport, _ place: QueuePlace, vectors: Bool) {
    if vectors {
      #expect(transport.setConfigurationVector(0))
      #expect(transport.setVector(1, ofQueue: 0))
    }
    transport.enableQueue(0, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
  }

  /// Negotiates what most tests do, and starts queue 0 with or without vectors.
  func running(_ transport: PCIDriverTransport, vectors: Bool) throws -> (QueuePlace, any LiteralRing) {
    #expect(negotiate(transport, .plain))
    let place = place(scattered: false)
    start(transport, place, vectors: vectors)
    return (place, place.ring(.plain, .literal))
  }

  func waitForAnswer(_ transport: any DriverTransport, _ condition: () -> Bool) -> Bool { interrupts.wait(condition) }
}
