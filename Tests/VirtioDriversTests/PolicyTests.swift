import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioTestKit

/// A machine of QEMU's patch that introduced the bit, from the driver's side.
private struct Case: CustomStringConvertible {
  var name: String
  var offersBit: Bool
  var isXen: Bool
  var usesPlatform: Bool
  var description: String { name }

  static let all = [
    Case(name: "offered: the platform's addresses", offersBit: true, isXen: false, usesPlatform: true),
    Case(name: "offered under Xen: the platform's", offersBit: true, isXen: true, usesPlatform: true),
    Case(name: "not offered under Xen: the platform's all the same", offersBit: false, isXen: true, usesPlatform: true),
    Case(name: "not offered: physical addresses", offersBit: false, isXen: false, usesPlatform: false),
  ]
}

@Suite("Which mapper a device gets")
struct PolicyTests {
  /// Whether every address that the device was given came from the platform's mapper.
  private func runs(
    _ rig: DriverRig, _ transport: InProcessTransport, isXen: Bool
  ) throws -> (bytes: Bool, usesPlatform: Bool) {
    let driver = try EntropyDriver(transport, on: rig.platform(isXen: isXen), options: RingKind.all[1].options())
    let guest = try rig.buffer(64, .fromDevice)
    let n = try driver.fill([GuestSegment(guest, count: 64)].span)
    let layout = try #require(transport.layouts[0])
    let ranges = rig.iommu.maps.map { $0.address...$0.address + ($0.count - 1) }
    let usesPlatform = ranges.contains { $0.contains(layout.descriptorArea.rawValue) }
    return (n == 64 && rig.bytes(guest, 64) != [UInt8](repeating: 0, count: 64), usesPlatform)
  }

  @Test(
    "The bit is accepted exactly when it is offered, and then every address is the platform's (R171)",
    arguments: Case.all)
  fileprivate func rule(_ one: Case) throws {
    let rig = try DriverRig(.strict)
    let device = EntropyDevice()
    let offered = one.offersBit ? device.features.union(.accessPlatform) : device.features
    // Under Xen no device sees physical memory, with any features negotiated.
    let transport = InProcessTransport(
      device, offered: offered, platform: rig.domain, physical: one.isXen ? rig.domain : PhysicalSpace(rig.memory))
    let result = try runs(rig, transport, isXen: one.isXen)
    #expect(result.bytes)
    #expect(result.usesPlatform == one.usesPlatform)
    #expect((AddressPath(negotiated: transport.accepted) == .platform) == one.offersBit)
    #expect(rig.domain.faults.isEmpty)
    if !one.usesPlatform { #expect(rig.iommu.maps.isEmpty) }
  }

  @Test(
    "Without the bit the addresses are physical, though the platform has an IOMMU that would map them elsewhere (R172)",
    arguments: RingKind.all)
  func bypass(ring: RingKind) throws {
    let rig = try DriverRig(.strict)
    let disk = try Disk()
    let transport = rig.transport(disk.device, offered: disk.device.features)
    let driver = try BlockDriver(transport, on: rig.platform(), options: ring.options())
    let guest = try rig.buffer(4096, .toDevice)
    rig.fill(guest, pattern(4096))
    try driver.write(3, from: [GuestSegment(guest, count: 4096)].span)
    #expect(rig.iommu.maps.isEmpty && rig.domain.mappings == 0)
    #expect(try disk.bytes(1536..<1536 + 4096) == pattern(4096))
  }

  @Test(
    "In a Xen guest the mapper is used though the bit is not offered (R173)",
    arguments: [MapperKind.strict, .grants, .bounce])
  func xen(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let disk = try Disk()
    let transport = InProcessTransport(
      disk.device, offered: disk.device.features, platform: BlockingSpace.none, physical: rig.domain)
    let driver = try BlockDriver(transport, on: rig.platform(isXen: true), options: RingKind.all[0].options())
    let guest = try rig.buffer(512, .toDevice)
    rig.fill(guest, pattern(512))
    try driver.write(0, from: [GuestSegment(guest, count: 512)].span)
    #expect(try disk.bytes(0..<512) == pattern(512))
    #expect(rig.domain.faults.isEmpty)
  }

  @Test("A restricted platform refuses a device without the bit or VERSION_1, says what to do, and sets FAILED (R174)")
  func restricted() throws {
    let rig = try DriverRig(.bounce)
    let device = EntropyDevice()
    let slots = try #require(rig.mapper as? BounceMapper).freeSlots
    let cases: [(offered: Features, missing: Features)] = [
      (device.features, .accessPlatform),
      (device.features.union(.accessPlatform).subtracting(.version1), .version1),
      (device.features.subtracting(.version1), [.version1, .accessPlatform]),
    ]
    for (offered, missing) in cases {
      let transport = rig.transport(device, offered: offered)
      let error = #expect(throws: DriverError.restricted(missing: missing)) {
        _ = try EntropyDriver(transport, on: rig.platform(isRestricted: true))
      }
      #expect(error?.description.contains("iommu_platform=on") == true)
      #expect(transport.statuses.last == [.acknowledge, .driver, .failed])
      #expect(transport.layouts.isEmpty && transport.accepted.isEmpty)
    }
    #expect((rig.mapper as? BounceMapper)?.freeSlots == slots)
    // The same device with both is welcome.
    _ = try EntropyDriver(rig.transport(device), on: rig.platform(isRestricted: true))
  }

  @Test(
    "A device without the bit is refused where the platform's addresses are other ones, if the platform wants that (R175)"
  )
  func mismatch() throws {
    let device = EntropyDevice()
    let rig = try DriverRig(.strict)
    let free = rig.pages.freeBytes
    let transport = rig.transport(device, offered: device.features)
    do {
      _ = try EntropyDriver(transport, on: rig.platform(mismatch: .refuse))
      Issue.record("it was let in")
    } catch {
      guard case .addressMismatch(let guest, let mapped) = error else {
        Issue.record("\(error)")
        return
      }
      #expect(guest.rawValue != mapped.rawValue)
      #expect(error.description.contains("iommu_platform=on"))
    }
    #expect(transport.statuses.last?.contains(.failed) == true)
    #expect(rig.pages.freeBytes == free && rig.domain.mappings == 0, "the probe leaves nothing behind")
    // With the bit, or where both addresses are the same, or where the host is known to go past the IOMMU, there is
    // nothing to refuse.
    _ = try EntropyDriver(rig.transport(device), on: rig.platform(mismatch: .refuse))
    let plain = try DriverRig(.direct)
    _ = try EntropyDriver(plain.transport(device, offered: device.features), on: plain.platform(mismatch: .refuse))
    _ = try EntropyDriver(rig.transport(device, offered: device.features), on: rig.platform(mismatch: .bypass))
  }

  @Test("A driver that withholds the bit from a device that offers it is refused by the device, and gives up")
  func withheld() throws {
    let rig = try DriverRig(.strict)
    let transport = rig.transport(EntropyDevice())
    var options = RingKind.all[0].options()
    options.withheld.insert(.accessPlatform)
    #expect(throws: DriverError.self) { _ = try EntropyDriver(transport, on: rig.platform(), options: options) }
    #expect(transport.statuses.last?.contains(.failed) == true)
    #expect(rig.domain.mappings == 0)
  }
}

/// Nothing at all.
private enum BlockingSpace {
  static var none: BlockedSpace { BlockedSpace() }
}
