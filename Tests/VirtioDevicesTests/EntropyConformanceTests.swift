import Testing
import Virtio
import VirtioTestKit

@testable import VirtioEntropy

@Suite("virtio-rng: what every device has to do") struct EntropyConformanceTests {
  static var device: DeviceConformance {
    // All 256 values are in 4096 fair bytes but with a probability below 1e-4; fewer than 200 of them with one that
    // never occurs in practice.
    DeviceConformance(requests: [
      .init(writable: 64) { used, bytes in used == 64 && bytes.count == 64 && Set(bytes).count > 16 },
      .init(readable: [1, 2, 3], writable: 4096) { used, bytes in used == 4096 && Set(bytes).count > 200 },
    ]) { EntropyDevice() }
  }

  @Test("However a driver meets virtio-rng", arguments: DeviceConformance.Check.allCases, DeviceConformance.meetings)
  func conforms(check: DeviceConformance.Check, meeting: RingCase) throws {
    #expect(try Self.device.violations(of: check, as: meeting) == [])
  }

  @Test("virtio-rng says what it is, and its configuration space is empty from every side")
  func itself() throws {
    #expect(try Self.device.violationsOfIdentity() == [])
    #expect(try Self.device.violationsOfConfiguration() == [])
  }
}
