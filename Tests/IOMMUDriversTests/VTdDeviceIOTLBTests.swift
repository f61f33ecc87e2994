import DMA
import IOMMUDrivers
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = RequesterID(bus: 2, device: 4, function: 1)
private let network = RequesterID(bus: 0, device: 5)

@Suite("The driver of VT-d, with devices that keep translations themselves")
struct VTdDeviceIOTLBTests {
  @Test("Such a device is told of each range after the unit is, and of everything when it leaves its domain (R131)")
  func descriptors() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk, deviceIOTLB: true)
    try bench.driver.attach(network, to: domain)
    #expect(bench.walk.context(bench.root, bus: 2, deviceFunction: 4 << 3 | 1).map { $0.low >> 2 & 3 } == 1)
    #expect(bench.walk.context(bench.root, bus: 0, deviceFunction: 5 << 3).map { $0.low >> 2 & 3 } == 0)
    let requester = UInt64(disk.rawValue) << 32
    // The lowest clear bit from 12 on says how many pages.
    let ranges: [(UInt64, UInt64, UInt64)] = [
      (0x5000, 4096, 0x5000), (0x4000, 8192, 0x4001), (0x3000, 8192, 0x3001),
      (0x20_0000, 2 << 20, 0x20_0000 | 0xF_F000 | 1),
    ]
    for (address, count, word) in ranges {
      try domain.map(DMAAddress(address), to: GuestAddress(VTdBench.data), count: count, permissions: .read)
      bench.registers.descriptors = []
      try domain.unmap(DMAAddress(address), count: count)
      try domain.flush()
      #expect(bench.registers.descriptors.map { $0.low & 15 } == [2, 3])
      #expect(bench.registers.descriptors.last?.low == 3 | requester)
      #expect(bench.registers.descriptors.last?.high == word, "\(address)")
    }
    bench.registers.descriptors = []
    try bench.driver.detach(disk)
    #expect(bench.registers.descriptors.map { $0.low & 15 } == [1, 2, 3])
    #expect(bench.registers.descriptors.last?.high == 0x7FFF_FFFF_FFFF_F001)
    bench.registers.descriptors = []
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    try domain.unmap(DMAAddress(0x5000), count: 4096)
    try domain.flush()
    #expect(bench.registers.descriptors.map { $0.low & 15 } == [2])
  }

  @Test(
    "Whether a device keeps translations can change while it is attached, and nothing old is used after an unmap, one way or the other (R131)"
  )
  func live() throws {
    let bench = try VTdBench()
    let domain = try bench.driver.makeDomain()
    try bench.driver.enable()
    var device = bench.device(disk)
    for round in UInt64(0)..<12 {
      try bench.driver.attach(disk, to: domain, deviceIOTLB: round % 3 != 0)
      let guest = VTdBench.data + round << 12
      for deferred in [false, true] {
        try domain.map(DMAAddress(0x5000), to: GuestAddress(guest), count: 4096, permissions: .read)
        if deferred {
          try domain.map(DMAAddress(0x9000), to: GuestAddress(guest + 4096), count: 4096, permissions: .read)
        }
        #expect(device.word(0x5000) == guest >> 12)
        if deferred { #expect(device.word(0x9000) == guest >> 12 + 1) }
        try domain.unmap(DMAAddress(0x5000), count: 4096)
        if deferred { try domain.unmap(DMAAddress(0x9000), count: 4096) }
        // Remembered still: what follows is what ends it.
        #expect(device.word(0x5000) == guest >> 12)
        try domain.flush()
        #expect(device.word(0x5000) == nil && device.word(0x9000) == nil)
      }
    }
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    #expect(device.word(0x5000) == VTdBench.data >> 12)
    bench.unit.reset()
    #expect(device.word(0x5000) == 5, "physical, and not what was kept")
  }
}
