import DMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioEntropy
import VirtioMMIO
import VirtioPCI
import VirtioTestKit

@Suite("What a device's options make of it", .timeLimit(.minutes(10))) struct ChoiceTests {
  private func choices(
    _ options: VirtioPCIOptions, id: DeviceID = .entropy, behind: Bool = false
  ) throws(ConfigurationError) -> VirtioPCIChoices {
    try VirtioPCIChoices(options, id: id, isBehindIOMMU: behind)
  }

  @Test("A back-end that cannot translate is refused the bit behind an IOMMU, with what to do (R018)")
  func backendBehindIOMMU() throws {
    let options = VirtioPCIOptions.with {
      $0.iommuPlatform = .on
      $0.backendTranslates = false
    }
    let iommu = PageIOMMU()
    let error = #expect(throws: ConfigurationError.self) { _ = try FunctionRig(EchoDevice(), options, iommu: iommu) }
    #expect(error?.option == "iommu_platform=on")
    #expect(error?.description.contains("bypasses the IOMMU") == true)
    // Nothing was half made.
    #expect(iommu.adoptions.isEmpty)
  }

  @Test("The bit with a legacy interface is refused, and the sentence says what to type (R023)")
  func legacyRefused() throws {
    let both = VirtioPCIOptions.with {
      $0.iommuPlatform = .on
      $0.disableLegacy = .off
    }
    var error = #expect(throws: ConfigurationError.self) { _ = try choices(both) }
    #expect(error?.hint == "use disable-legacy=on")
    let old = VirtioPCIOptions.with {
      $0.iommuPlatform = .on
      $0.disableModern = true
    }
    error = #expect(throws: ConfigurationError.self) { _ = try choices(old) }
    #expect(error?.hint == "leave disable-modern out")
  }

  @Test("Left to the device, the bit switches the legacy interface off, visibly (R024)")
  func automatic() throws {
    let plain = try FunctionRig(EntropyDevice())
    #expect(plain.function.choices.interface == .transitional)
    #expect(plain.access.readConfiguration(at: PCIRegister.deviceID, width: 2) == 0x1005)
    #expect(plain.access.readConfiguration(at: PCIRegister.revisionID, width: 1) == 0)
    #expect(plain.access.readConfiguration(at: PCIRegister.subsystemID, width: 2) == 4)
    let platform = try FunctionRig(EntropyDevice(), .platform)
    #expect(platform.function.choices.interface == .modern)
    #expect(platform.access.readConfiguration(at: PCIRegister.deviceID, width: 2) == 0x1044)
    #expect(platform.access.readConfiguration(at: PCIRegister.revisionID, width: 1) == 1)
    #expect(platform.access.readConfiguration(at: PCIRegister.subsystemID, width: 2) >= 0x40)
    #expect(platform.access.readConfiguration(at: PCIRegister.bar(0), width: 4) == 0)
    #expect(platform.function.choices.reasons.contains { $0.contains("no legacy interface") })
  }

  @Test(
    "Left to the device, the bit is offered where something needs it and nothing forbids it", arguments: [false, true],
    [false, true])
  func automaticBit(_ isBehind: Bool, _ isRestricted: Bool) throws {
    let options = VirtioPCIOptions.with {
      $0.iommuPlatform = .auto
      $0.isRestricted = isRestricted
    }
    let choice = try choices(options, behind: isBehind)
    #expect(choice.offersAccessPlatform == (isBehind || isRestricted))
    #expect(choice.interface == (isBehind || isRestricted ? .modern : .transitional))
    var legacy = options
    legacy.disableLegacy = .off
    let old = try choices(legacy, behind: isBehind)
    #expect(!old.offersAccessPlatform && old.interface == .transitional)
    var weak = options
    weak.backendTranslates = false
    #expect(try choices(weak, behind: isBehind).offersAccessPlatform == (isRestricted && !isBehind))
  }

  @Test("A device without a legacy form, or without any interface, is refused")
  func impossible() throws {
    #expect(throws: ConfigurationError.self) { _ = try choices(.with { $0.disableLegacy = .off }, id: .fileSystem) }
    #expect(throws: ConfigurationError.self) { _ = try choices(.with { $0.disableModern = true }, id: .iommu) }
    #expect(throws: ConfigurationError.self) {
      _ = try choices(
        .with {
          $0.disableModern = true
          $0.disableLegacy = .on
        })
    }
    #expect(try choices(VirtioPCIOptions(), id: .fileSystem).interface == .modern)
  }

  @Test("No identification number has a say in which memory a device reaches (R012)", arguments: 0..<6)
  func identification(_ which: Int) throws {
    for platform in [OnOffAuto.off, .on] {
      let options = VirtioPCIOptions.with {
        $0.iommuPlatform = platform
        $0.disableLegacy = .on
        $0.rename = { identity in
          switch which {
          case 0: identity.vendorID = 0x8086
          case 1: identity.deviceID = 0x1234
          case 2: identity.subsystemVendorID = 0x1014
          case 3: identity.subsystemID = 0
          case 4: identity.revisionID = 0xff
          default: identity.classCode = 0x06_00_00
          }
        }
      }
      let rig = try FunctionRig(EchoDevice(), options, iommu: PageIOMMU())
      let access = IdentityMask(rig.access)
      let transport = try PCIDriverTransport(access)
      #expect(
        transport.enableMSIX([
          InterruptMessage(address: 0xfee0_0000, data: 0), InterruptMessage(address: 0xfee0_0000, data: 1),
        ]))
      let features: Features = platform == .on ? .platform : .plain
      #expect(rig.negotiate(transport, features))
      let place = rig.place(scattered: platform == .on)
      let ring = place.ring(features, .literal)
      rig.start(transport, place)
      #expect(rig.echo(transport, place, ring))
      #expect((rig.iommu?.lookUps(by: rig.requester) ?? 0 > 0) == (platform == .on))
    }
  }
}

/// A function that shows virtio's numbers to its driver, with any values.
private final class IdentityMask: PCIFunctionAccess {
  private let inner: BusAccess
  init(_ inner: BusAccess) { self.inner = inner }
  func readConfiguration(at offset: Int, width: Int) -> UInt32 {
    switch offset {
    case PCIRegister.vendorID: 0x1af4
    case PCIRegister.deviceID: 0x1044
    default: inner.readConfiguration(at: offset, width: width)
    }
  }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    inner.writeConfiguration(at: offset, width: width, value)
  }
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 { inner.readBAR(index, at: offset, width: width) }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    inner.writeBAR(index, at: offset, width: width, value)
  }
}

@Suite("What a memory-mapped device's options make of it", .timeLimit(.minutes(10))) struct BoardChoiceTests {
  private func choices(
    _ options: VirtioMMIOOptions, id: DeviceID = .entropy, behind: Bool = false
  ) throws(ConfigurationError) -> VirtioMMIOChoices {
    try VirtioMMIOChoices(options, id: id, isBehindIOMMU: behind)
  }

  @Test("The bit with the legacy registers is refused, and the sentence says what to type (R023)")
  func legacyRefused() throws {
    let both = VirtioMMIOOptions.with {
      $0.iommuPlatform = .on
      $0.legacy = true
    }
    let error = #expect(throws: ConfigurationError.self) { _ = try choices(both) }
    #expect(error?.option == "iommu_platform=on,legacy=on" && error?.hint == "use legacy=off")
    #expect(throws: ConfigurationError.self) { _ = try BoardRig(EchoDevice(), both) }
    #expect(throws: ConfigurationError.self) { _ = try choices(.old, id: .fileSystem) }
    #expect(try !choices(VirtioMMIOOptions(), id: .fileSystem).isLegacy)
  }

  @Test(
    "A back-end that cannot translate is refused the bit behind an IOMMU (R018), and never hears of it elsewhere (R019)"
  )
  func backend() throws {
    let options = VirtioMMIOOptions.with {
      $0.iommuPlatform = .on
      $0.backendTranslates = false
    }
    let error = #expect(throws: ConfigurationError.self) { _ = try choices(options, behind: true) }
    #expect(error?.description.contains("bypasses the IOMMU") == true)
    #expect(try choices(options).hidesAccessPlatform)
  }

  @Test(
    "Left to the device, the bit is offered where something needs it and the registers can show it (R024)",
    arguments: [false, true], [false, true])
  func automatic(_ isBehind: Bool, _ isRestricted: Bool) throws {
    let options = VirtioMMIOOptions.with {
      $0.iommuPlatform = .auto
      $0.isRestricted = isRestricted
    }
    #expect(try choices(options, behind: isBehind).offersAccessPlatform == (isBehind || isRestricted))
    var old = options
    old.legacy = true
    let choice = try choices(old, behind: isBehind)
    #expect(!choice.offersAccessPlatform && choice.isLegacy)
    var weak = options
    weak.backendTranslates = false
    #expect(try choices(weak, behind: isBehind).offersAccessPlatform == (isRestricted && !isBehind))
  }
}
