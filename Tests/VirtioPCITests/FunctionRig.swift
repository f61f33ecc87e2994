import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import Logging
import PCI
import Synchronization
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// Messages and pins as the platform sees them; each arrival can be waited for.
final class Platform: MessageInterrupts, LineInterrupts {
  private let state = Mutex<(data: [UInt32], pins: Set<UInt8>)>(([], []))
  private let arrived: EventFD

  init() throws { arrived = try EventFD() }

  /// Data of messages, in order.
  var messages: [UInt32] { state.withLock { $0.data } }
  /// Whether a device's pin is asserted.
  func isAsserted(_ device: UInt8) -> Bool { state.withLock { $0.pins.contains(device) } }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) {
    state.withLock { $0.data.append(message.data) }
    arrived.signal()
  }
  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) {
    state.withLock { if asserted { $0.pins.insert(device) } else { $0.pins.remove(device) } }
    arrived.signal()
  }

  /// Waits until `condition` holds, looking whenever something arrives.
  func wait(_ condition: () -> Bool) -> Bool {
    while !condition() {
      guard (try? arrived.wait(timeout: .seconds(20))) == true else { return condition() }
      _ = try? arrived.drain()
    }
    return true
  }

  /// Waits until something arrives, and no longer than a moment.
  func pause() {
    _ = try? arrived.wait(timeout: .milliseconds(1))
    _ = try? arrived.drain()
  }

  /// Waits until `condition` holds, for what nothing tells of.
  func poll(_ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      _ = try? arrived.wait(timeout: .milliseconds(1))
    }
    return true
  }
}

/// A function as its driver reaches it: through the bus, at the addresses that firmware gave it.
final class BusAccess: PCIFunctionAccess {
  private let inner: PCIBusAccess
  var requester: RequesterID { inner.requester }
  /// Widths of the notifications, and what they were, seen on their way.
  private(set) var writes: [(bar: Int, offset: UInt64, width: Int, value: UInt32)] = []

  init(_ bus: PCIBus, _ found: PCIEnumerator.Found) { inner = PCIBusAccess(bus, found) }

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
final class FunctionRig {
  let memory: GuestMemory
  let platform: Platform
  let bus: PCIBus
  let function: VirtioPCIFunction
  let access: BusAccess
  let iommu: PageIOMMU?
  let device: any VirtioDevice
  /// The function's place: 00:03.0.
  let slot = PCISlot(3)
  var requester: RequesterID { access.requester }
  static let messageAddress: UInt64 = 0xfee0_0000

  /// - Parameter lateIOMMU: the IOMMU comes after the function.
  init(
    _ device: any VirtioDevice = EchoDevice(), _ options: VirtioPCIOptions = VirtioPCIOptions(),
    iommu: PageIOMMU? = nil, lateIOMMU: Bool = false
  ) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    platform = try Platform()
    bus = PCIBus(memory, messages: platform, lines: platform)
    if let iommu, !lateIOMMU { bus.setIOMMU(iommu) }
    function = try bus.add(at: slot) { master throws(ConfigurationError) in
      try VirtioPCIFunction(
        device, options, name: "test", on: master, log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    }
    if let iommu, lateIOMMU { bus.setIOMMU(iommu) }
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    access = BusAccess(bus, try #require(firmware.enumerate().first))
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

  /// Goes as far as FEATURES_OK (§3.1.1). Whether it stuck.
  func negotiate(_ transport: PCIDriverTransport, _ features: Features) -> Bool {
    transport.status = []
    #expect(transport.status == [])
    transport.status = [.acknowledge]
    transport.status = [.acknowledge, .driver]
    transport.accept(features)
    transport.status = [.acknowledge, .driver, .featuresOK]
    return transport.status.contains(.featuresOK)
  }

  /// Memory for a queue and its buffers: where the device sees it, page by page elsewhere in guest memory if
  /// `isScattered`.
  func place(_ size: UInt16, packed: Bool, scattered isScattered: Bool) -> Place {
    Place(memory, size: size, packed: packed, scattered: isScattered) {
      iommu?.map(requester, $0, byteCount: 4096, to: $1)
    }
  }

  typealias Place = QueuePlace

  /// Sets DRIVER_OK with queue 0 enabled at a place, its calls on vector 1.
  func start(_ transport: PCIDriverTransport, _ place: Place, vectors: Bool = true) {
    if vectors {
      #expect(transport.setConfigurationVector(0))
      #expect(transport.setVector(1, ofQueue: 0))
    }
    transport.enableQueue(0, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
  }

  /// Sends bytes through queue 0 and checks the echo. Whether it came.
  func echo(
    _ transport: PCIDriverTransport, _ place: Place, _ ring: any LiteralRing, indirect: Bool = false, seed: UInt8 = 1
  ) -> Bool {
    let sent = (0..<200).map { UInt8(truncatingIfNeeded: $0) &* 3 &+ seed }
    place.literal.write(sent, at: place.data)
    let answer = place.data + 8000
    place.literal.write([UInt8](repeating: 0xee, count: 300), at: answer)
    let chain = [
      LiteralDescriptor(place.data, 120), LiteralDescriptor(place.data + 120, 80),
      LiteralDescriptor(answer, 300, writable: true),
    ]
    ring.wantCalls()
    _ = ring.post(chain, table: indirect ? place.tables : nil)
    ring.publish()
    transport.notify(0, data: 0)
    var used: [LiteralUsed] = []
    guard
      platform.wait({
        used += ring.takeUsed()
        return !used.isEmpty || transport.status.contains(.needsReset)
      }), let first = used.first
    else { return false }
    return place.literal.read(Int(first.length), at: answer) == EchoDevice.answer(to: sent, count: Int(first.length))
  }
}

extension Features {
  /// What most tests accept.
  static var plain: Features { [.version1] }
  static var platform: Features { [.version1, .accessPlatform] }
}

extension VirtioPCIOptions {
  /// A modern device with the bit offered.
  static var platform: VirtioPCIOptions {
    var options = VirtioPCIOptions()
    options.iommuPlatform = .on
    return options
  }
  static func with(_ change: (inout VirtioPCIOptions) -> Void) -> VirtioPCIOptions {
    var options = VirtioPCIOptions()
    change(&options)
    return options
  }
}
