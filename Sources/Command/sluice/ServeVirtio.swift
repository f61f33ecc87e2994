import HostIO
import Logging
import PCI
import VfioUser
import VhostUserBackend
import Virtio
import VirtioPCI
import VirtioServing

/// Serves a virtio device over the protocol that the options name, until a signal or the end of the last peer.
///
/// `makeDevice` comes first and the socket last, so that a mistake leaves nothing behind.
func serve(_ name: String, _ options: SocketOptions, _ makeDevice: (Logger) throws -> Served) throws {
  try options.check()
  try serve(name, options.program) { log, unlimited in
    let served = try makeDevice(log)
    switch options.served {
    case .vhostUser: return try vhostUser(name, options, served, log, unlimited)
    case .vfioUser: return try vfioUser(name, options, served, log, unlimited)
    }
  }
}

/// A back-end: the front-end shows the device to its guest.
private func vhostUser(
  _ name: String, _ options: SocketOptions, _ served: Served, _ log: Logger, _ unlimited: Logger
) throws -> Service {
  let socket = try options.open()
  var backend = BackendOptions(
    name: name, accessPlatform: options.platform, translations: options.translations ?? .keep, once: options.once)
  backend.offersPackedRings = !options.noPacked
  backend.indirect = options.indirect
  backend.idleLatency = options.idleLatency?.policy ?? .auto
  if case .limit(let most) = backend.idleLatency {
    // An explicit option must not be dropped silently.
    do throws(HostError) { _ = try IdleLatencyLimit(microseconds: most) } catch {
      log.warning("--idle-latency \(most) has no effect: \(error)")
    }
  }
  let place = options.place
  let server = try VhostUserServer(
    served.device, on: socket, options: backend, log: unlimited, facts: { served.facts() + [place] }
  ) { report, form in form == .json ? report.json : report.words }
  return Service(server: server, socket: socket, path: options.socketPath, report: { server.statistics })
}

/// A PCI function of ours in the client's machine. It is to the guest what a physical device is: every access goes
/// through the client's IOMMU, with any features negotiated.
private func vfioUser(
  _ name: String, _ options: SocketOptions, _ served: Served, _ log: Logger, _ unlimited: Logger
) throws -> Service {
  var pci = VirtioPCIOptions()
  (pci.isHardware, pci.isIOMMUElsewhere) = (true, true)
  switch options.platform {
  case .auto: pci.iommuPlatform = .auto
  case .on: pci.iommuPlatform = .on
  case .off: pci.iommuPlatform = .off
  }
  pci.isAccessPlatformOptional = options.platform != .on
  pci.disableLegacy = options.disableLegacy ?? .auto
  if pci.disableLegacy == .off {
    let consequence = "behind an IOMMU in use every access of the device is refused"
    log.notice("--disable-legacy off: VIRTIO_F_ACCESS_PLATFORM is not offered to anyone; \(consequence)")
  }
  if options.noPacked { pci.withheld.insert(.ringPacked) }
  if !options.indirect.isOffered(for: served.device, accessPlatform: options.platform) {
    pci.withheld.insert(.indirectDescriptors)
  }
  let doorbells = options.vfioUser.doorbells ?? .messages
  if doorbells == .shared { pci.notifyLayout = .cellPerQueue }
  let (function, policy, place) = (pci, options.platform, options.place)
  let server = try VfioUserServer(
    on: options.open(), name: name, once: options.once, doorbells: doorbells, log: unlimited,
    describe: { (function: VirtioPCIFunction, report: inout ServingReport) in
      report.policy = policy
      report.facts = served.facts() + [place]
      function.describe(in: &report)
    },
    explain: { report, form in form == .json ? report.json : report.words }
  ) { master in
    do throws(ConfigurationError) {
      return try VirtioPCIFunction(served.device, function, name: name, on: master, log: log)
    } catch {
      guard error.option.contains("=") else { throw Failure.host("\(error.why); \(error.hint)") }
      let option = error.option.split(separator: "=").joined(separator: " ")
      throw Failure.usage("--\(option) is not possible: \(error.why); \(error.hint)")
    }
  }
  return Service(server: server, socket: server.socket, path: options.vfioUser.path, report: { server.statistics })
}
