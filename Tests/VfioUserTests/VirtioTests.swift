import DMA
import DriverDMA
import Foundation
import HostIO
import IOMMUInterface
import PCI
import SocketMessages
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioPCI
import VirtioServing
import VirtioTestKit

@testable import VfioUser

@Suite("virtio devices over vfio-user", .timeLimit(.minutes(10))) struct VirtioOverVfioUserTests {
  let folder: TemporaryFolder
  static let (from, into) = (GuestAddress(0x80_0200), GuestAddress(0x90_0000))
  static let pattern = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }

  init() throws { folder = try TemporaryFolder() }

  private func disk(_ change: (inout VirtioPCIOptions) -> Void = { _ in }) throws -> VirtioRig {
    let image = try folder.file("disk.img", [UInt8](repeating: 0, count: 4 << 20))
    return try VirtioRig(BlockDevice(BlockOptions(path: image)), in: folder, change)
  }

  /// Writes a pattern to a disk, reads it back, and compares.
  private func tryOut(_ driver: BlockDriver, _ rig: VirtioRig) throws {
    rig.put(Self.pattern, at: Self.from)
    rig.put([UInt8](repeating: 0xee, count: 8192), at: Self.into)
    try driver.write(16, from: [GuestSegment(Self.from, count: 8192)].span)
    try driver.flush()
    try driver.read(16, into: [GuestSegment(Self.into, count: 8192)].span)
    #expect(rig.bytes(8192, at: Self.into) == Self.pattern)
  }

  @Test(
    "Behind the client's mappings a disk reads back what was written, a mapping for each request, and nothing stays mapped",
    arguments: [Features.ringPacked, []])
  func block(_ withheld: Features) throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true)
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options(withholding: withheld))
    #expect(driver.features.contains(.accessPlatform) && driver.features.contains(.ringPacked) == withheld.isEmpty)
    try tryOut(driver, rig)
    var report = rig.report(guest)
    #expect(report.addressPath == .platform && report.device == .block && report.queues.first?.isRunning == true)
    #expect(report.reason.contains("the driver accepted VIRTIO_F_ACCESS_PLATFORM"), "\(report.reason)")
    // The queue's thread counts at the end of its round, after the driver has been called.
    #expect(
      eventually {
        report = rig.report(guest)
        return report.totals.requests == 3 && report.totals.completions == 3
      })
    try driver.stop()
    report = rig.report(guest)
    let client = try #require(report.client)
    #expect(client.mappings == 0 && client.mappedBytes == 0 && client.refusals == 0)
    #expect(client.maps > 3 && client.unmaps == client.maps && client.peakMappedBytes > 8192)
    #expect(client.files == 1 && client.fileBytes == UInt64(VirtioRig.memoryBytes))
    #expect(client.interrupts > 0 && client.isPinConnected && client.connectedVectors == 0)
  }

  @Test("Behind the client's mappings an entropy device fills what it was given, and not a byte beside it")
  func entropy() throws {
    let rig = try VirtioRig(EntropyDevice(), in: folder)
    let guest = try VirtioGuest(rig, isTranslated: true)
    let driver = try EntropyDriver(guest.transport, on: guest.platform, options: guest.options())
    rig.put([UInt8](repeating: 0, count: 8192), at: Self.into)
    let written = try driver.fill([GuestSegment(Self.into, count: 4096)].span)
    #expect(written > 0 && written <= 4096)
    let bytes = rig.bytes(8192, at: Self.into)
    #expect(bytes[..<written].contains { $0 != 0 } && bytes[written...].allSatisfy { $0 == 0 })
    try driver.stop()
    #expect(rig.report(guest).client?.mappings == 0)
  }

  /// Ways in which a driver comes to use guest-physical addresses.
  enum Bypass: String, CaseIterable, CustomTestStringConvertible {
    case notOffered, notAccepted, legacy
    var testDescription: String { rawValue }

    func change(_ options: inout VirtioPCIOptions) {
      switch self {
      case .notOffered: options.iommuPlatform = .off
      case .notAccepted: break
      case .legacy: options.disableLegacy = .off
      }
    }
    var withheld: Features { self == .notAccepted ? .accessPlatform : [] }
  }

  @Test(
    "Without bit 33 a disk behind an IOMMU in use reaches nothing: every access is refused, counted and logged with its address, and not a byte moves",
    arguments: Bypass.allCases)
  func bypasses(_ way: Bypass) throws {
    let rig = try disk(way.change)
    let guest = try VirtioGuest(rig, isTranslated: true, isLegacy: way == .legacy, patience: 300)
    rig.put(Self.pattern, at: Self.from)
    rig.put([UInt8](repeating: 0xee, count: 8192), at: Self.into)
    #expect(throws: DriverError.self) {
      let driver = try BlockDriver(
        guest.transport, on: guest.platform, options: guest.options(withholding: way.withheld))
      #expect(!driver.features.contains(.accessPlatform))
      try driver.write(0, from: [GuestSegment(Self.from, count: 4096)].span)
    }
    let report = rig.report(guest)
    let client = try #require(report.client)
    #expect(report.faults > 0 && client.refusals == report.faults)
    #expect(client.lastRefusals.allSatisfy { $0.contains("nothing is mapped at 0x1") }, "\(client.lastRefusals)")
    #expect(rig.lines.all.contains { $0.contains("access refused: nothing is mapped at 0x1") }, "\(rig.lines.all)")
    #expect(rig.bytes(8192, at: Self.into).allSatisfy { $0 == 0xee })
    #expect(try Data(contentsOf: folder.url.appending(path: "disk.img")).allSatisfy { $0 == 0 })
    #expect(report.totals.requests == 0)
  }

  @Test(
    "Without bit 33 and without an IOMMU a disk works, through the client's mapping of all memory",
    arguments: Bypass.allCases)
  func withoutIOMMU(_ way: Bypass) throws {
    let rig = try disk(way.change)
    let guest = try VirtioGuest(rig, isTranslated: false, isLegacy: way == .legacy)
    let driver = try BlockDriver(
      guest.transport, on: guest.platform, options: guest.options(withholding: way.withheld))
    #expect(!driver.features.contains(.accessPlatform))
    try tryOut(driver, rig)
    let report = rig.report(guest)
    #expect(report.addressPath == .physical && report.faults == 0 && report.looksLikePassThrough)
    #expect(report.reason.contains(way == .notAccepted ? "did not accept" : "is not offered"), "\(report.reason)")
    try driver.stop()
  }

  @Test("Where bit 33 is required, a driver without it does not get past FEATURES_OK, and the report says why")
  func required() throws {
    let rig = try disk {
      $0.iommuPlatform = .on
      $0.isAccessPlatformOptional = false
    }
    let guest = try VirtioGuest(rig, isTranslated: true)
    #expect {
      _ = try BlockDriver(
        guest.transport, on: guest.platform, options: guest.options(withholding: .accessPlatform))
    } throws: { error in
      if case .features = error as? DriverError { true } else { false }
    }
    let report = rig.report(guest)
    #expect(report.reason == "the driver was refused: it does not accept VIRTIO_F_ACCESS_PLATFORM, and has to")
    #expect(rig.lines.contains("it does not accept VIRTIO_F_ACCESS_PLATFORM"))
    #expect(report.faults == 0)
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
    try tryOut(driver, rig)
    #expect(!rig.report(guest).reason.contains("refused"))
    try driver.stop()
  }

  @Test("With the legacy interface asked for bit 33 is not offered, and with the bit the device is modern only")
  func interfaces() throws {
    for (change, id, offers) in [
      ({ $0.disableLegacy = .off }, 0x1001, false), ({ _ in }, 0x1042, true),
      ({ $0.iommuPlatform = .off }, 0x1001, false),
      (
        {
          $0.iommuPlatform = .off
          $0.disableLegacy = .on
        }, 0x1042, false
      ),
    ] as [((inout VirtioPCIOptions) -> Void, UInt32, Bool)] {
      let rig = try disk(change)
      let guest = try VirtioGuest(rig, isTranslated: true)
      #expect(guest.client.readConfiguration(at: 2, width: 2) == id)
      #expect(rig.report(guest).offersAccessPlatform == offers)
    }
    // Both are asked for: refused before there is a socket.
    var isAsked = false
    func socket() throws -> InheritedSocket {
      isAsked = true
      return .listening(try UnixListener(path: folder.path("never.sock")))
    }
    #expect(throws: ConfigurationError.self) {
      _ = try VfioUserServer(on: socket(), log: .silent) { master in
        var options = VirtioPCIOptions()
        (options.iommuPlatform, options.disableLegacy) = (.on, .off)
        return try VirtioPCIFunction(EntropyDevice(), options, on: master, log: .silent)
      }
    }
    #expect(!isAsked)
  }

  @Test("After a reset by the client, with a request under way or none, the device is as new and works again")
  func resets() throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true)
    for _ in 0..<3 {
      let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
      try tryOut(driver, rig)
      _ = try driver.submitRead(0, into: [GuestSegment(Self.into, count: 4096)].span)
      driver.publish()
      try guest.client.command(.reset)
      #expect(guest.transport.status == [] && rig.report(guest).queues.allSatisfy { !$0.isRunning })
      #expect(PCICommand(rawValue: UInt16(guest.client.readConfiguration(at: PCIRegister.command, width: 2))).isEmpty)
      try driver.stop()
      // As firmware and the operating system do it after a reset.
      guest.client.writeConfiguration(
        at: PCIRegister.command, width: 2, UInt32(PCICommand([.memorySpace, .busMaster]).rawValue))
    }
  }

  @Test("When a client goes its device reaches nothing any more, keeps its state, and serves the next client")
  func reconnects() throws {
    let rig = try disk()
    do {
      let guest = try VirtioGuest(rig, isTranslated: false)
      let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
      try tryOut(driver, rig)
      guest.client.close()
      #expect(eventually { !rig.server.statistics.isConnected })
      let report = rig.server.statistics
      #expect(report.client?.mappings == 0 && report.client?.files == 0 && report.client?.isPinConnected == false)
      #expect(DeviceStatus(rawValue: report.status).contains(.driverOK) && report.failedSessions == 0)
    }
    let guest = try VirtioGuest(rig, isTranslated: true)
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
    try tryOut(driver, rig)
    #expect(rig.report(guest).sessions == 2)
    try driver.stop()
  }

  @Test("A queue's vector reaches its eventfd, and is counted; one without an eventfd is counted as dropped")
  func vectors() throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true, patience: 2_000_000)
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
    let event = try EventFD()
    try guest.client.command(
      .setInterrupts,
      SetInterrupts(
        flags: SetInterrupts.dataEventfd | SetInterrupts.trigger, index: VfioInterrupt.msix, start: 1, count: 1
      ).encoded, descriptors: [event.rawValue])
    #expect(guest.transport.enableMSIX((0..<2).map { InterruptMessage(address: 0xFEE0_0000, data: $0) }))
    #expect(guest.transport.setVector(1, ofQueue: 0))
    try tryOut(driver, rig)
    #expect(try event.wait(timeout: .seconds(10)))
    let before = try #require(rig.report(guest).client)
    #expect(before.connectedVectors == 1 && before.interrupts > 0 && before.vectors > 1)
    #expect(guest.transport.setVector(0, ofQueue: 0))
    try tryOut(driver, rig)
    #expect(eventually { rig.server.statistics.client.map { $0.lostInterrupts > before.lostInterrupts } == true })
    try driver.stop()
  }

  @Test("The server answers explain beside its client")
  func explains() throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true)
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
    try tryOut(driver, rig)
    // The queue's thread counts at the end of its round, after the driver has been called.
    #expect(eventually { rig.server.statistics.totals.completions == 3 })
    let answer = try ExplainRequest.ask(rig.path, as: .json)
    for part in [
      #""protocol":"vfio-user""#, #""device":"virtio-blk""#, #""connected":true"#, #""address_path":"platform""#,
      #""completions":3"#, #""faults":0"#,
    ] {
      #expect(answer.contains(part), "\(answer)")
    }
    try driver.stop()
  }
}
