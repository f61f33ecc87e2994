import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

@Suite("virtio-iommu: what every device has to do") struct IOMMUConformanceTests {
  static var device: DeviceConformance {
    func ends(_ status: UInt8) -> (Int, [UInt8]) -> Bool { { used, bytes in used == 4 && bytes == [status, 0, 0, 0] } }
    // Any number of times in any order: each leaves behind what it found, or the same.
    return DeviceConformance(
      requests: [
        .init(
          readable: [1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0] + [UInt8](repeating: 0, count: 8), writable: 4,
          isAnswered: ends(0)),
        .init(readable: [5, 0, 0, 0, 8, 0, 0, 0] + [UInt8](repeating: 0, count: 64), writable: 516) { used, bytes in
          used == 516 && bytes[..<4] == [1, 0, 20, 0] && bytes[24...].allSatisfy { $0 == 0 }
        },
        .init(
          readable: [4, 0, 0, 0, 1, 0, 0, 0] + [UInt8](repeating: 0, count: 8) + [0xff, 0xff]
            + [UInt8](repeating: 0, count: 10), writable: 4, isAnswered: ends(0)),
        .init(
          readable: [2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0] + [UInt8](repeating: 0, count: 8), writable: 4,
          isAnswered: ends(6)),
        .init(readable: [3, 0, 0, 0, 9] + [UInt8](repeating: 0, count: 31), writable: 4, isAnswered: ends(6)),
      ], writableConfiguration: 36..<37
    ) {
      let memory = try GuestMemory(byteCount: 4096)
      var options = IOMMUOptions()
      options.reservedMemory = [IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi)]
      let device = try IOMMUDevice(memory, options: options)
      device.adopt(EndpointSpace(memory, requester: RequesterID(rawValue: 8), isOpen: true))
      return device
    }
  }

  @Test(
    "However a driver meets virtio-iommu (R162)", arguments: DeviceConformance.Check.allCases,
    DeviceConformance.meetings)
  func conforms(check: DeviceConformance.Check, meeting: RingCase) throws {
    #expect(try Self.device.violations(of: check, as: meeting) == [])
  }

  @Test("virtio-iommu says what it is, and its configuration space is the same from every side")
  func itself() throws {
    #expect(try Self.device.violationsOfIdentity() == [])
    #expect(try Self.device.violationsOfConfiguration() == [])
  }
}
