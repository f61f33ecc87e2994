import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import Logging
import Synchronization
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioServing
import VirtioTestKit

/// An interrupt line as the platform sees it; each change can be waited for.
final class Line: Sendable {
  private let state = Mutex<(isAsserted: Bool, edges: Int)>((false, 0))
  private let changed: EventFD

  init() throws { changed = try EventFD() }

  var isAsserted: Bool { state.withLock { $0.isAsserted } }
  /// How often it was asserted.
  var edges: Int { state.withLock { $0.edges } }

  func set(_ isAsserted: Bool) {
    state.withLock { state in
      state.isAsserted = isAsserted
      if isAsserted { state.edges += 1 }
    }
    changed.signal()
  }

  /// Waits until `condition` holds, looking whenever the line changes, and every millisecond for what nothing tells of.
  func wait(_ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      if (try? changed.wait(timeout: .milliseconds(1))) == true { _ = try? changed.drain() }
    }
    return true
  }
}

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
final class DeviceRig {
  let memory: GuestMemory
  let line: Line
  let endpoint: MMIOEndpoint
  let mmio: VirtioMMIODevice
  let window: Window
  let device: any VirtioDevice
  let iommu: PageIOMMU?
  /// No function's number: the machine has chosen it.
  static let requester = RequesterID(rawValue: 0xf00d)

  init(
    _ device: any VirtioDevice = EchoDevice(), _ options: VirtioMMIOOptions = VirtioMMIOOptions(),
    iommu: PageIOMMU? = nil
  ) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    let line = try Line()
    endpoint = MMIOEndpoint(memory, requester: Self.requester)
    if let iommu { endpoint.setIOMMU(iommu) }
    mmio = try VirtioMMIODevice(device, options, name: "test", at: endpoint, line: { line.set($0) }, log: Self.log)
    window = Window(mmio)
    self.line = line
    self.device = device
    self.iommu = iommu
  }

  static var log: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }

  func driver() throws -> MMIODriverTransport { try MMIODriverTransport(window) }

  /// Goes as far as FEATURES_OK (§3.1.1). Whether it stuck.
  func negotiate(_ transport: MMIODriverTransport, _ features: Features) -> Bool {
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
  func place(_ size: UInt16 = 16, packed: Bool = false, scattered isScattered: Bool) -> QueuePlace {
    QueuePlace(memory, size: size, packed: packed, scattered: isScattered) {
      iommu?.map(Self.requester, $0, byteCount: 4096, to: $1)
    }
  }

  /// Sets DRIVER_OK with queue 0 enabled at a place.
  func start(_ transport: MMIODriverTransport, _ place: QueuePlace) {
    transport.enableQueue(0, place.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
  }

  /// Sends bytes through a queue and checks the echo, handling the interrupt as a driver does. Whether it came.
  func echo(
    _ transport: MMIODriverTransport, _ place: QueuePlace, _ ring: any LiteralRing, queue: Int = 0,
    indirect: Bool = false, seed: UInt8 = 1
  ) -> Bool {
    let sent = (0..<200).map { UInt8(truncatingIfNeeded: $0) &* 3 &+ seed }
    place.literal.write(sent, at: place.data)
    let answer = place.data + 8000
    place.literal.write([UInt8](repeating: 0xee, count: 300), at: answer)
    ring.wantCalls()
    _ = ring.post(
      [
        LiteralDescriptor(place.data, 120), LiteralDescriptor(place.data + 120, 80),
        LiteralDescriptor(answer, 300, writable: true),
      ],
      table: indirect ? place.tables : nil)
    ring.publish()
    transport.notify(queue, data: 0)
    var used: [LiteralUsed] = []
    guard
      line.wait({
        if line.isAsserted { _ = transport.takeInterrupts() }
        used += ring.takeUsed()
        return !used.isEmpty || transport.status.contains(.needsReset)
      }), let first = used.first
    else { return false }
    return place.literal.read(Int(first.length), at: answer) == EchoDevice.answer(to: sent, count: Int(first.length))
  }
}

extension Features {
  static var plain: Features { [.version1] }
  static var platform: Features { [.version1, .accessPlatform] }
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
