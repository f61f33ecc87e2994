import Testing
import Virtio
import VirtioTestKit

/// The battery must be able to fail: each of these devices has one flaw, and one check that has to see it.
@Suite("What every device has to do can be failed") struct FlawTests {
  @Test("A device without a flaw passes", arguments: DeviceConformance.Check.allCases, [true, false])
  func flawless(check: DeviceConformance.Check, packed: Bool) throws {
    let device = FlawedDevice.conformance(nil)
    #expect(try device.violations(of: check, as: RingCase(packed: packed, size: 64, path: .platform)) == [])
    #expect(try device.violationsOfIdentity() == [])
    #expect(try device.violationsOfConfiguration() == [])
  }

  @Test("A flaw of a device is found", arguments: FlawedDevice.Flaw.allCases, [AddressPath.physical, .platform])
  func found(flaw: FlawedDevice.Flaw, path: AddressPath) throws {
    let device = FlawedDevice.conformance(flaw)
    if let check = flaw.check {
      #expect(try device.violations(of: check, as: RingCase(packed: false, size: 64, path: path)) != [])
      #expect(
        try device.violations(of: check, as: RingCase(packed: true, size: 45, path: path, driver: .driverQueue)) != [])
    } else {
      #expect(try device.violationsOfIdentity() + device.violationsOfConfiguration() != [])
    }
  }
}
