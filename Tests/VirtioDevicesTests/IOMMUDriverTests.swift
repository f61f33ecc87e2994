import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioDrivers
import VirtioTestKit

@testable import VirtioEntropy
@testable import VirtioIOMMU

/// Our driver of virtio-iommu, against our device and against devices that misbehave.
@Suite("virtio-iommu: the driver")
struct IOMMUDriverTests {
  private static let eight = RequesterID(rawValue: 8), nine = RequesterID(rawValue: 9)

  private struct Machine {
    let memory: GuestMemory
    let device: IOMMUDevice
    let transport: HarnessTransport
    let endpoints: [EndpointSpace]
    let driver: VirtioIOMMUDriver
  }

  /// The first 16 pages are full of their number plus 1; the driver's memory is at 1 MiB.
  private func makeMemory() throws -> GuestMemory { try GuestMemory.numbered(pages: 16, of: 512) }

  private func machine(
    _ wanted: Features = VirtioIOMMUDriver.supported, _ change: (inout IOMMUOptions) -> Void = { _ in }
  ) throws -> Machine {
    let memory = try makeMemory()
    let device = try IOMMUDevice(memory, options: IOMMURig.options(change))
    let endpoints = [Self.eight, Self.nine].map { EndpointSpace(memory, requester: $0, isOpen: true) }
    for endpoint in endpoints { device.adopt(endpoint) }
    let transport = HarnessTransport(device, memory)
    let driver = try VirtioIOMMUDriver(transport, memory: memory, area: GuestAddress(1 << 20), wanted: wanted) { _ in }
    return Machine(memory: memory, device: device, transport: transport, endpoints: endpoints, driver: driver)
  }

  private func look(_ endpoint: EndpointSpace, _ address: UInt64, _ access: DMAAccess = .read) -> UInt8? {
    var view = DeviceView(endpoint)
    return try? view.bytes(address, 1, access).get()[0]
  }

  static let formats: [Features] = [
    VirtioIOMMUDriver.supported, VirtioIOMMUDriver.supported.subtracting(.ringPacked),
    VirtioIOMMUDriver.supported.subtracting([.eventIndex, .inOrder]),
    VirtioIOMMUDriver.supported.subtracting([.ringPacked, .eventIndex, .inOrder]),
  ]

  @Test("Attach, map, unmap, detach and bypass do what they say, more often than the ring is long", arguments: formats)
  func programs(wanted: Features) throws {
    let machine = try machine(wanted)
    let (driver, endpoints) = (machine.driver, machine.endpoints)
    #expect(machine.transport.status == [.acknowledge, .driver, .featuresOK, .driverOK])
    for lap in 0..<100 as Range<UInt64> {
      try driver.attach(Self.eight, to: 1)
      try driver.attach(Self.nine, to: 1)
      try driver.map(DMAAddress(lap << 12), byteCount: 8192, to: GuestAddress(4096), permissions: .read, in: 1)
      #expect(
        look(endpoints[0], lap << 12) == 2 && look(endpoints[1], (lap << 12) + 4096) == 3
          && look(endpoints[0], lap << 12, .write) == nil)
      try driver.unmap(DMAAddress(lap << 12), byteCount: 8192, in: 1)
      #expect(look(endpoints[0], lap << 12) == nil)
      try driver.attach(Self.nine, to: 2, bypass: true)
      #expect(look(endpoints[1], 0) == 1)
      try driver.detach(Self.nine, from: 2)
      try driver.detach(Self.eight, from: 1)
      #expect(machine.device.domains.isEmpty)
    }
    try driver.setBypass(true)
    #expect(look(endpoints[0], 0) == 1 && driver.configuration.bypass)
    driver.stop()
    #expect(throws: VirtioIOMMUDriverError.stopped) { try driver.attach(Self.eight, to: 1) }
  }

  @Test("A refusal is the device's status, and the next request works")
  func refusals() throws {
    let driver = try machine().driver
    #expect(throws: VirtioIOMMUDriverError.refused(.noEntry)) { try driver.attach(RequesterID(rawValue: 1), to: 1) }
    #expect(throws: VirtioIOMMUDriverError.refused(.invalid)) { try driver.detach(Self.eight, from: 1) }
    try driver.attach(Self.eight, to: 1)
    try driver.map(DMAAddress(.max - 4095), byteCount: 4096, to: GuestAddress(0), permissions: .readWrite, in: 1)
    #expect(throws: VirtioIOMMUDriverError.refused(.invalid)) {
      try driver.map(DMAAddress(.max - 4095), byteCount: 4096, to: GuestAddress(0), permissions: .readWrite, in: 1)
    }
    #expect(throws: VirtioIOMMUDriverError.refused(.range)) {
      try driver.map(DMAAddress(1), byteCount: 4096, to: GuestAddress(0), permissions: .read, in: 1)
    }
    #expect(throws: VirtioIOMMUDriverError.range) {
      try driver.map(DMAAddress(.max - 4095), byteCount: 8192, to: GuestAddress(0), permissions: .read, in: 1)
    }
    #expect(throws: VirtioIOMMUDriverError.range) { try driver.unmap(DMAAddress(0), byteCount: 0, in: 1) }
    try driver.unmap(DMAAddress(4096), byteCount: .max - 4095, in: 1)
  }

  @Test("What is not negotiated is not asked for")
  func negotiated() throws {
    let driver = try machine(VirtioIOMMUDriver.supported.subtracting([.iommuBypassConfig, .iommuMMIO, .iommuProbe])) {
      $0.reservedMemory = [IOMMUReservedMemory(0...4095)]
    }.driver
    #expect(throws: VirtioIOMMUDriverError.unsupported(.iommuBypassConfig)) {
      try driver.attach(Self.eight, to: 1, bypass: true)
    }
    #expect(throws: VirtioIOMMUDriverError.unsupported(.iommuBypassConfig)) { try driver.setBypass(true) }
    #expect(throws: VirtioIOMMUDriverError.unsupported(.iommuMMIO)) {
      try driver.map(DMAAddress(0), byteCount: 4096, to: GuestAddress(0), permissions: .read, in: 1, isMMIO: true)
    }
    #expect(try driver.probe(Self.eight).isEmpty)
  }

  @Test("PROBE tells an endpoint's reserved ranges; properties that are not known are passed over")
  func probes() throws {
    let ranges = [IOMMUReservedMemory(0x1000...0x1fff), IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi)]
    let driver = try machine { $0.reservedMemoryOf = [Self.eight: ranges] }.driver
    #expect(try driver.probe(Self.eight) == ranges && driver.probe(Self.nine).isEmpty)
    #expect(throws: VirtioIOMMUDriverError.refused(.noEntry)) { try driver.probe(RequesterID(rawValue: 1)) }
    let good = try #require(IOMMUReservedMemory.properties([ranges[0]], count: 24))
    func list(_ bytes: [UInt8]) -> [IOMMUReservedMemory] { IOMMUReservedMemory.list(bytes.span) }
    #expect(list([7, 0, 3, 0, 1, 2, 3] + good) == [ranges[0]], "another type")
    #expect(list([1, 0x10, 20, 0] + [UInt8](repeating: 0, count: 20) + good) == [ranges[0]], "reserved bits")
    #expect(list([1, 0, 22, 0] + good[4...] + [0, 0] + good) == [ranges[0], ranges[0]], "a longer one")
    #expect(
      list([0, 0, 0, 0] + good).isEmpty && list([1, 0, 200, 0] + good).isEmpty && list(Array(good.dropLast())).isEmpty)
    #expect(list([1, 0, 4, 0, 0, 0, 0, 0] + good) == [ranges[0]], "a shorter one")
    #expect(IOMMUReservedMemory.properties(ranges, count: 47) == nil)
  }

  @Test("Faults arrive as the endpoint met them, more than the event queue is long, each once", arguments: formats)
  func faults(wanted: Features) throws {
    let machine = try machine(wanted)
    #expect(try machine.driver.receiveFaults().isEmpty)
    var seen: [IOMMUFault] = []
    for n in 0..<200 as Range<UInt64> {
      machine.endpoints[Int(n % 2)].report(DMAFault(address: DMAAddress(n), access: .write, reason: .unmapped))
      if n % 3 == 0 {
        machine.transport.serve(1)
        seen += try machine.driver.receiveFaults()
      }
    }
    machine.transport.serve(1)
    seen += try machine.driver.receiveFaults()
    var expected: [IOMMUFault] = []
    for n in 0..<200 as Range<UInt64> {
      expected.append(IOMMUFault(reason: .domain, flags: [.write, .address], endpoint: 8 + UInt32(n % 2), address: n))
    }
    #expect(seen == expected)
    let bytes = expected[0].bytes
    for i in 1..<4 {
      var odd = bytes
      odd[i] = 1
      #expect(IOMMUFault(odd.span) == nil, "a reserved field that is not 0")
    }
    let short = Array(bytes.dropLast())
    #expect(IOMMUFault(bytes.span) == expected[0] && IOMMUFault(short.span) == nil)
  }

  @Test("A device that does not answer costs the time-out, once, and nothing afterwards")
  func deaf() throws {
    let memory = try makeMemory()
    let transport = HarnessTransport(try IOMMUDevice(memory), memory)
    var slept = 0
    let driver = try VirtioIOMMUDriver(
      transport, memory: memory, area: GuestAddress(1 << 20), timeout: .milliseconds(20)
    ) { _ in slept += 1 }
    transport.isDeaf = true
    #expect(throws: VirtioIOMMUDriverError.timeout) { try driver.attach(Self.eight, to: 1) }
    #expect(slept > 0)
    #expect(throws: VirtioIOMMUDriverError.stopped) { try driver.attach(Self.eight, to: 1) }
    #expect(throws: VirtioIOMMUDriverError.stopped) { try driver.receiveFaults() }
  }

  @Test("Devices that are something else, offer too little, refuse, or never stand still are refused in turn")
  func strangers() throws {
    let memory = try makeMemory()
    func start(_ transport: HarnessTransport, area: UInt64 = 1 << 20) throws {
      _ = try VirtioIOMMUDriver(transport, memory: memory, area: GuestAddress(area), timeout: .milliseconds(50)) { _ in
      }
    }
    #expect(throws: VirtioIOMMUDriverError.notAnIOMMU(.entropy)) {
      try start(HarnessTransport(EntropyDevice(), memory))
    }
    let device = try IOMMUDevice(memory)
    let refusing = HarnessTransport(device, memory)
    refusing.refusesFeatures = true
    #expect(throws: VirtioIOMMUDriverError.featuresRefused(device.features.intersection(VirtioIOMMUDriver.supported))) {
      try start(refusing)
    }
    #expect(refusing.status.contains(.failed))
    let restless = HarnessTransport(device, memory)
    restless.isRestless = true
    #expect(throws: VirtioIOMMUDriverError.configuration) { try start(restless) }
    #expect(throws: VirtioIOMMUDriverError.missingFeatures(.iommuMapUnmap)) {
      try start(HarnessTransport(oddIOMMU(.version1), memory))
    }
    #expect(throws: VirtioIOMMUDriverError.configuration) {
      try start(HarnessTransport(oddIOMMU(pageSizeMask: 0), memory))
    }
    #expect(throws: VirtioIOMMUDriverError.noQueue(1)) { try start(HarnessTransport(oddIOMMU(queues: 1), memory)) }
    #expect(throws: VirtioIOMMUDriverError.self) { try start(HarnessTransport(device, memory), area: 2 << 20) }
    #expect(throws: VirtioIOMMUDriverError.memory(GuestAddress(2 << 20 - 65536))) {
      try start(HarnessTransport(device, memory), area: 2 << 20 - 65536)
    }
  }

  @Test("A request that comes back without a status is not taken for done", arguments: [0, 1, 4])
  func silent(used: Int) throws {
    let memory = try makeMemory()
    let transport = HarnessTransport(oddIOMMU(used: used), memory)
    let driver = try VirtioIOMMUDriver(transport, memory: memory, area: GuestAddress(1 << 20)) { _ in }
    for _ in 0..<100 { #expect(throws: VirtioIOMMUDriverError.notRecognized) { try driver.attach(Self.eight, to: 1) } }
  }
}

/// A device that calls itself an IOMMU and gives requests back as they are. No event ever comes.
private func oddIOMMU(
  _ features: Features = [.version1, .iommuMapUnmap], pageSizeMask: UInt64 = 4096, queues: Int = 2, used: Int = 0
) -> TestDevice {
  var configuration = IOMMUConfiguration()
  configuration.pageSizeMask = pageSizeMask
  return TestDevice(
    .iommu, features: features, queues: [UInt16](repeating: 8, count: queues), configuration: configuration.bytes,
    resting: [1]
  ) { _ in used }
}
