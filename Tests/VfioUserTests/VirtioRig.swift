import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import PCI
import SocketMessages
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@testable import VfioUser

/// A virtio device served over vfio-user as `sluice serve` does it, and memory for a guest.
final class VirtioRig {
  static let memoryBytes = 16 << 20
  let server: VfioUserServer
  let lines = LogLines()
  let path: String
  let memory = GuestMemory()
  let file: MemoryFile
  private let thread: WorkerThread

  init(
    _ device: any VirtioDevice, in folder: TemporaryFolder, doorbells: DoorbellPolicy = .messages,
    _ change: (inout VirtioPCIOptions) -> Void = { _ in }
  ) throws {
    path = folder.path("vfio.sock")
    var options = VirtioPCIOptions()
    options.isHardware = true
    options.iommuPlatform = .auto
    options.isAccessPlatformOptional = true
    if doorbells == .shared { options.notifyLayout = .cellPerQueue }
    change(&options)
    let (function, log) = (options, lines.logger)
    let server = try VfioUserServer(
      on: .listening(UnixListener(path: path)), doorbells: doorbells, log: log,
      describe: { (function: VirtioPCIFunction, report: inout ServingReport) in function.describe(in: &report) }
    ) { master in
      try VirtioPCIFunction(device, function, on: master, log: log)
    }
    self.server = server
    thread = try WorkerThread(name: "vfio-user") { try? server.run() }
    file = try MemoryFile(name: "guest", size: UInt64(Self.memoryBytes))
    try memory.add(
      MemoryRegion(
        guestAddress: GuestAddress(0), byteCount: UInt64(Self.memoryBytes),
        mapping: HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: Self.memoryBytes)))
  }

  deinit {
    server.stop()
    thread.join()
  }

  func bytes(_ count: Int, at address: GuestAddress) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    #expect(memory.copy(from: address, into: &span) == count)
    return bytes
  }

  func put(_ bytes: [UInt8], at address: GuestAddress) { #expect(memory.copy(bytes.span, to: address) == bytes.count) }

  /// What the server says, once the client's commands so far are done.
  func report(_ guest: VirtioGuest) -> ServingReport {
    _ = guest.client.readConfiguration(at: 0, width: 2)
    return server.statistics
  }
}

/// A guest with a virtio device of a ``VirtioRig``, and the VMM around it. It hears of used buffers by the interrupt
/// pin, which it unmasks as QEMU does.
final class VirtioGuest {
  let client: Client
  let transport: PCIDriverTransport
  let platform: DriverPlatform
  let wait: BoundedWait

  /// - Parameters:
  ///   - isTranslated: there is an IOMMU in use in front of the device: only what its driver maps is mapped. Otherwise
  ///     all of memory is, at its own address.
  ///   - isLegacy: the driver uses the legacy interface.
  init(_ rig: VirtioRig, isTranslated: Bool, isLegacy: Bool = false, patience: Int = 20_000) throws {
    let client = try Client(path: rig.path)
    self.client = client
    try client.command(.reset)
    let file = rig.file.descriptor.rawValue
    let pages = GuestPages(rig.memory, at: GuestAddress(1 << 20), byteCount: 7 << 20)
    if isTranslated {
      let mapper = IOMMUMapper(
        ClientDomain(client, file: file), addresses: IOVAAllocator(aperture: 1 << 32...(1 << 33) - 1), pages: pages)
      platform = DriverPlatform(pages: pages, mapper: mapper)
    } else {
      platform = DriverPlatform(pages: pages)
      let all = MapRequest(flags: 3, offset: 0, address: 0, size: UInt64(VirtioRig.memoryBytes))
      try client.command(.mapDMA, all.encoded, descriptors: [file])
    }
    let pin = try EventFD()
    func pinRequest(_ flags: UInt32) -> [UInt8] {
      SetInterrupts(flags: flags, index: VfioInterrupt.pin, start: 0, count: 1).encoded
    }
    try client.command(
      .setInterrupts, pinRequest(SetInterrupts.dataEventfd | SetInterrupts.trigger), descriptors: [pin.rawValue])
    let transport = try PCIDriverTransport(client, legacy: isLegacy)
    self.transport = transport
    let unmask = pinRequest(SetInterrupts.dataNone | SetInterrupts.unmask)
    wait = BoundedWait(attempts: patience) {
      guard !client.isClosed, (try? pin.wait(timeout: .milliseconds(1))) == true else { return }
      _ = try? pin.drain()
      _ = transport.takeISR()
      _ = try? client.command(.setInterrupts, unmask)
    }
  }

  func options(withholding withheld: Features = []) -> DriverOptions {
    DriverOptions(queue: QueueOptions(size: 64), withheld: withheld, wait: wait)
  }
}
