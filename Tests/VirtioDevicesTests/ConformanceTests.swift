import DMA
import IOMMUInterface
import Storage
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioBlock
@testable import VirtioEntropy
@testable import VirtioIOMMU

@Suite("What every device has to do") struct ConformanceTests {
  enum Device: Hashable, CustomStringConvertible {
    case entropy, iommu
    case block(EngineKind)
    static let all = [entropy, iommu] + EngineKind.buffered.map { block($0) }
    var description: String {
      switch self {
      case .entropy: "virtio-rng"
      case .iommu: "virtio-iommu"
      case .block(let engine): "virtio-blk, \(engine)"
      }
    }

    var conformance: DeviceConformance {
      get throws {
        switch self {
        case .entropy: ConformanceTests.entropy
        case .iommu: ConformanceTests.iommu
        case .block(let engine): try ConformanceTests.block(engine)
        }
      }
    }
  }
  struct Meeting: CustomStringConvertible {
    var check: DeviceConformance.Check
    var ring: RingCase
    var description: String { "\(check): \(ring)" }
    static let all = DeviceConformance.Check.allCases.flatMap { check in
      DeviceConformance.meetings.map { Meeting(check: check, ring: $0) }
    }
  }

  @Test("However a driver meets a device, virtio-iommu (R162) among them", arguments: Device.all, Meeting.all)
  func conforms(device: Device, meeting: Meeting) throws {
    #expect(try device.conformance.violations(of: meeting.check, as: meeting.ring) == [])
  }

  @Test("A device says what it is, and its configuration space holds from every side", arguments: Device.all)
  func itself(device: Device) throws {
    #expect(try device.conformance.violationsOfIdentity() == [])
    #expect(try device.conformance.violationsOfConfiguration() == [])
  }

  private static var entropy: DeviceConformance {
    // All 256 values are in 4096 fair bytes but with a probability below 1e-4; fewer than 200 of them with one that
    // never occurs in practice.
    DeviceConformance(requests: [
      .init(writable: 64) { used, bytes in used == 64 && bytes.count == 64 && Set(bytes).count > 16 },
      .init(readable: [1, 2, 3], writable: 4096) { used, bytes in used == 4096 && Set(bytes).count > 200 },
    ]) { EntropyDevice() }
  }

  /// The image, and a device on it that goes on where an earlier one stopped.
  private static func block(_ engine: EngineKind) throws -> DeviceConformance {
    let file = try ScratchFile(pattern(65536))
    let sector = pattern(512, seed: 9)
    return DeviceConformance(
      requests: [
        .init(readable: Wire.header(0, 0), writable: 513) { used, bytes in used == 513 && bytes == pattern(512) + [0] },
        .init(readable: Wire.header(1, 64) + sector, writable: 1) { used, bytes in
          used == 1 && bytes == [0] && Array(file.bytes[64 * 512..<65 * 512]) == sector
        },
        .init(readable: Wire.header(8), writable: 21) { used, bytes in
          used == 21 && bytes.last == 0 && bytes.first != 0xee
        },
      ],
      // The write-back field alone, §5.2.4.
      writableConfiguration: 32..<33, endsInStatus: true
    ) { try engine.device(file) { $0.serial = "conformance" } }
  }

  private static var iommu: DeviceConformance {
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
}
