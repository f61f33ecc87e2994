import Storage
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioBlock

@Suite("virtio-blk: what every device has to do") struct BlockConformanceTests {
  /// The image, and a device on it that goes on where an earlier one stopped.
  static func device(_ engine: EngineKind) throws -> DeviceConformance {
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

  @Test(
    "However a driver meets virtio-blk",
    arguments: EngineKind.buffered,
    DeviceConformance.Check.allCases.flatMap { check in
      DeviceConformance.meetings.map { Meeting(check: check, meeting: $0) }
    })
  func conforms(engine: EngineKind, meeting: Meeting) throws {
    #expect(try Self.device(engine).violations(of: meeting.check, as: meeting.meeting) == [])
  }

  @Test("virtio-blk says what it is, and its configuration space holds from every side", arguments: EngineKind.buffered)
  func itself(engine: EngineKind) throws {
    #expect(try Self.device(engine).violationsOfIdentity() == [])
    #expect(try Self.device(engine).violationsOfConfiguration() == [])
  }

  struct Meeting: CustomStringConvertible {
    var check: DeviceConformance.Check
    var meeting: RingCase
    var description: String { "\(check): \(meeting)" }
  }
}
