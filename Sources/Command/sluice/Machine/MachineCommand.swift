import ArgumentParser
import DeviceCatalog
import Glibc
import HostIO
import Machine
import VhostUserBackend
import VirtioServing

/// `sluice machine`: machines in this process.
struct MachineCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machine",
    abstract: "Run a machine in this process, with the drivers of its guest.",
    discussion: """
      A machine has memory, a PCI bus, an IOMMU, devices, and the drivers of a guest. It needs no hypervisor and no \
      kernel.

      sluice machine run

      sluice machine --list-platforms
      """,
    subcommands: [RunMachine.self])

  @Flag(name: .customLong("list-platforms"), help: "List the platforms, each with a description, and exit.")
  var listPlatforms = false

  func run() throws {
    guard listPlatforms else {
      throw Failure.usage("nothing to do; use `sluice machine run` or `sluice machine --list-platforms`")
    }
    for platform in Platform.all {
      StandardStream.output.print(
        platform.name.padded(to: 18) + platform.summary)
      StandardStream.output.print("".padded(to: 18) + platform.origin)
    }
  }

  /// The platform of this name.
  static func platform(_ name: String) throws -> Platform {
    if let platform = Platform.named(name) { return platform }
    throw Failure.usage("there is no platform \(name); there are \(Platform.all.map(\.name).joined(separator: ", "))")
  }
}

/// `sluice machine run`.
struct RunMachine: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Run a workload on a machine, and report the address path of each device, with the reason.",
    discussion: """
      The file describes the machine in JSON; without a file, the machine has VT-d, a disk from before the feature \
      bit, and a device of each kind. The workload runs on each device separately.

      {"platform": "pc-vtd", "devices": [{"kind": "blk", "iommu_platform": "on", "iommu": "attached", "ring": \
      "packed"}], "workload": {"kind": "verify", "seconds": 1}}

      A device has: name, kind (\(DeviceKind.inMachines.map(\.rawValue).joined(separator: ", "))), interface \
      (modern, transitional, legacy, mmio, mmio-legacy), iommu_platform (off, on, auto), host (new, old), accepts \
      (all, not-33, neither, legacy), iommu (none, bypass, attached, unattached), ring (split, packed), descriptors \
      (direct, indirect), image (a path; without one the disk is memory), size (bytes of such a disk), flush_batch \
      (unmaps in one deferred flush). The workload has: kind (read, write, verify, churn), requests, seconds, \
      block_size, seed.

      A host that is old is from before VIRTIO_F_ACCESS_PLATFORM. A driver that accepts not-33 accepts all features \
      but that one; neither: neither it nor VIRTIO_F_VERSION_1. The workload churn also maps and unmaps memory \
      beside its requests.

      Exit status: 0 all requests succeeded, 1 some failed, 2 wrong usage.
      """)

  @Argument(
    help: ArgumentHelp("The machine's description in JSON.", valueName: "file"), completion: .file(extensions: ["json"])
  )
  var file: String?

  @Flag(help: "Print JSON: an object for each device, one on each line.")
  var json = false

  func run() throws {
    let description = try file.map { try MachineFile.description(at: $0) } ?? .embedded
    let reports: [DeviceReport]
    do throws(MachineError) {
      reports = try description.run()
    } catch {
      switch error {
      case .configuration(let why): throw Failure.usage("\(why)")
      default: throw Failure.host("\(error)")
      }
    }
    if !json { StandardStream.output.print("\(description.platform.name): \(description.platform.summary)") }
    for report in reports { StandardStream.output.print(json ? Self.object(report) : Self.words(report)) }
    let bad = reports.filter { !$0.isGood }
    if !bad.isEmpty {
      throw Failure(sentence: "\(bad.map(\.work.device).joined(separator: ", ")): some requests failed", status: 1)
    }
  }

  private static func words(_ report: DeviceReport) -> String {
    var lines = ["\(report.work.device): \(report.description.kind.rawValue), \(report.description.interface.rawValue)"]
    func line(_ title: String, _ text: String) {
      lines.append("  " + title.padded(to: 14) + text)
    }
    if let isNegotiated = report.isPlatformNegotiated {
      line("bit 33", "VIRTIO_F_ACCESS_PLATFORM \(isNegotiated ? "was accepted" : "was not negotiated")")
    }
    switch report.path {
    case .platform:
      line("path", "the platform's addresses; the IOMMU's state for it: \(report.description.state.rawValue)")
    case .physical: line("path", "physical addresses; the device bypasses any IOMMU")
    case nil: line("path", "none: it accessed no memory")
    }
    for reason in report.reasons { line("why", reason) }
    let used = report.path == .physical ? report.physical : report.platform
    line("translations", "\(used.hits) hits, \(used.misses) misses")
    line("faults", "\(report.platform.faults + report.physical.faults)")
    let work = report.work
    let seconds = Double(work.duration.components.seconds) + Double(work.duration.components.attoseconds) / 1e18
    let rate = seconds > 0 ? Int(Double(work.requests) / seconds) : 0
    line(
      "requests",
      "\(work.requests), \(work.bytes) bytes, \(rate) a second"
        + (work.churned > 0 ? "; \(work.churned) mappings came and went beside them" : ""))
    if report.description.kind.isStorage {
      line("data", work.wrongBytes == 0 ? "every byte as it was written" : "\(work.wrongBytes) bytes came back wrong")
    }
    if let error = work.error { line("ended by", error) }
    return lines.joined(separator: "\n")
  }

  private static func object(_ report: DeviceReport) -> String {
    var object = JSONObject()
    object.add("device", report.work.device)
    object.add("kind", report.description.kind.rawValue)
    object.add("interface", report.description.interface.rawValue)
    object.add("iommu", report.description.state.rawValue)
    if let isNegotiated = report.isPlatformNegotiated { object.add("access_platform_accepted", isNegotiated) }
    object.add("address_path", report.path?.rawValue)
    object.add("hits", report.platform.hits + report.physical.hits)
    object.add("misses", report.platform.misses + report.physical.misses)
    object.add("faults", report.platform.faults + report.physical.faults)
    object.add("requests", report.work.requests)
    object.add("bytes", report.work.bytes)
    object.add("wrong_bytes", report.work.wrongBytes)
    object.add("error", report.work.error)
    return object.text
  }
}
