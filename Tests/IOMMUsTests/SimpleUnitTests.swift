import DMA
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

func faultReason(_ result: Result<UInt64, DMAFault>) -> DMAFault.Reason? {
  if case .failure(let fault) = result { fault.reason } else { nil }
}

private func store(_ value: UInt64, bigEndian: Bool = false, at address: UInt64, in memory: GuestMemory) {
  memory.setWord(address, bigEndian ? value.byteSwapped : value)
}

@Suite("The TCE table of a PPC64 host bridge")
struct TCETableTests {
  let table = TCETable(start: DMAAddress(0x8000_0000), pages: 16)
  let endpoint: EndpointSpace

  init() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    for page in 0..<UInt64(16) { store(page, at: page << 12, in: memory) }
    endpoint = table.plug(RequesterID(bus: 0, device: 1), memory)
  }

  @Test("What was put is reachable with its permissions, what was taken is not")
  func putAndTake() throws {
    var device = DeviceView(endpoint)
    #expect(faultReason(device.read(0x8000_1000)) == .unmapped)
    try table.put(DMAAddress(0x8000_1000), 0x5000 | 3)
    #expect(device.read(0x8000_1000) == .success(5))
    #expect(device.asksToWrite(0x8000_1000) == nil)
    try table.put(DMAAddress(0x8000_1000), 0x6000 | 1)
    #expect(device.read(0x8000_1000) == .success(6))
    #expect(device.asksToWrite(0x8000_1000)?.reason == .permission)
    try table.put(DMAAddress(0x8000_1000), 0)
    #expect(faultReason(device.read(0x8000_1000)) == .unmapped)
    #expect(table.faults == 3)
  }

  @Test("Many entries at once, and the same one many times")
  func manyAtOnce() throws {
    var device = DeviceView(endpoint)
    try table.put(DMAAddress(0x8000_0000), [0x3000 | 3, 0x2000 | 3, 0x9000 | 3])
    #expect(
      device.read(0x8000_0000) == .success(3) && device.read(0x8000_1000) == .success(2)
        && device.read(0x8000_2000) == .success(9))
    try table.stuff(DMAAddress(0x8000_0000), 0, count: 16)
    #expect(faultReason(device.read(0x8000_0000)) == .unmapped && faultReason(device.read(0x8000_2000)) == .unmapped)
  }

  @Test("Outside the window, and between pages, a hypercall fails and a device is refused")
  func outsideTheWindow() throws {
    var device = DeviceView(endpoint)
    for address: UInt64 in [0, 0x7FFF_F000, 0x8001_0000, 0x8000_0800, .max & ~0xFFF] {
      #expect(throws: TCETable.HypercallError.parameter) { try table.put(DMAAddress(address), 3) }
    }
    #expect(throws: TCETable.HypercallError.parameter) { try table.stuff(DMAAddress(0x8000_F000), 3, count: 2) }
    #expect(throws: TCETable.HypercallError.parameter) { try table.stuff(DMAAddress(0x8000_F000), 3, count: .max) }
    #expect(throws: TCETable.HypercallError.parameter) { try table.stuff(DMAAddress(0x8000_F000), 3, count: -1) }
    #expect(faultReason(device.read(0)) == .unmapped && faultReason(device.read(0x8001_0000)) == .unmapped)
  }
}

@Suite("The IOMMU of a sun4u host bridge")
struct Sun4uTests {
  private func bench(_ control: UInt64) throws -> (GuestMemory, Sun4uIOMMU, EndpointSpace) {
    let memory = try GuestMemory(byteCount: 4 << 20)
    let unit = Sun4uIOMMU(memory)
    let endpoint = unit.plug(RequesterID(bus: 0, device: 1), memory)
    store(0x5EED, at: 0x2_0000, in: memory)
    store(0xFEED, at: 0x3_0000, in: memory)
    unit.write(0x10_0000, to: .base)
    unit.write(control, to: .control)
    return (memory, unit, endpoint)
  }

  @Test("Off, addresses are physical")
  func off() throws {
    let (_, _, endpoint) = try bench(0)
    var device = DeviceView(endpoint)
    #expect(device.read(0x2_0000) == .success(0x5EED))
  }

  @Test(
    "On, the highest addresses below 4 GiB go through the buffer, with both page sizes",
    arguments: [UInt64(8192), 65536])
  func translation(pageSize: UInt64) throws {
    let (memory, unit, endpoint) = try bench(pageSize == 8192 ? 1 : 5)
    let window = 1024 * pageSize
    let address = 1 << 32 - window + 3 * pageSize
    store(1 << 63 | 0x2_0000 | 2, bigEndian: true, at: 0x10_0000 + 3 * 8, in: memory)
    var device = DeviceView(endpoint)
    #expect(device.read(address) == .success(0x5EED))
    #expect(device.asksToWrite(address + pageSize - 8) == nil)
    #expect(faultReason(device.read(address + pageSize)) == .unmapped)
    #expect(faultReason(device.read(0x2_0000)) == .unmapped)
    #expect(
      faultReason(device.read(1 << 32 - window - 8)) == .unmapped && faultReason(device.read(1 << 32)) == .unmapped)
    // Remembered until the guest flushes the page.
    store(1 << 63 | 0x3_0000, bigEndian: true, at: 0x10_0000 + 3 * 8, in: memory)
    #expect(device.read(address) == .success(0x5EED))
    unit.write(address + 8, to: .flush)
    #expect(device.read(address) == .success(0xFEED))
    #expect(device.asksToWrite(address)?.reason == .permission)
  }

  @Test("The largest buffer covers no more than the addresses there are, and a buffer outside memory maps nothing")
  func extremes() throws {
    let (_, unit, endpoint) = try bench(0x7_0005)
    var device = DeviceView(endpoint)
    #expect(faultReason(device.read(0)) == .unmapped)
    unit.write(.max, to: .base)
    #expect(faultReason(device.read(0xFFFF_0000)) == .unmapped)
    #expect(unit.read(.control) == 0x7_0005 && unit.read(.base) == .max & ~0x1FFF)
  }
}
