internal import DMA
internal import DriverDMA
internal import Examination
internal import HostIO
internal import IOMMUInterface
internal import PCI
internal import Virtio
internal import VirtioDrivers

/// A virtio-pci disk: its requests read the first sectors.
final class VirtioProbe: Probe {
  let most: UInt64
  let failsAlone = false
  private let driver: BlockDriver
  let access: FunctionAccess

  /// Whether there is a driver for this virtio-pci device.
  static func knows(_ identity: CheckContext.Identity) -> Bool {
    identity.vendor == PCITransport.vendorID && PCITransport.type(ofDeviceID: identity.device) == .block
  }

  let name = "virtio-blk"

  init(_ session: Session, _ setup: Setup) throws(Finding) {
    let access = FunctionAccess(session)
    self.access = access
    let pages = GuestPages(
      session.memory.guest, at: GuestAddress(ClientMemory.base + ClientMemory.page),
      byteCount: ClientMemory.ringBytes - ClientMemory.page)
    let looks = max(1, milliseconds(setup.start ?? session.context.patience))
    let options = DriverOptions(wait: BoundedWait(attempts: looks) { access.attend(.milliseconds(1)) })
    let transport: PCIDriverTransport
    do throws(PCITransportError) { transport = try PCIDriverTransport(access) } catch {
      throw access.trouble ?? .broken("the device has no interface of virtio: \(error)")
    }
    do throws(DriverError) {
      // With the bit for it (VIRTIO_F_ACCESS_PLATFORM) or without: the addresses are those that are mapped.
      let platform = DriverPlatform(pages: pages, mapper: DirectMapper(pages))
      driver = try BlockDriver(transport, on: platform, options: options)
      most = min(driver.capacity &* 512, 64 << 10) & ~(ClientMemory.page - 1)
    } catch {
      throw access.trouble ?? .broken("the device did not start: \(error)")
    }
    guard most > 0 else { throw .notChecked("the disk is shorter than a page") }
    guard let event = setup.event else { return }
    try session.connection.ask(
      .setInterrupts, Wire.interrupts(SetFlags.eventfd | SetFlags.trigger, Part.msix, 0, 1), descriptors: [event])
    guard transport.enableMSIX([InterruptMessage(address: 0xFEE0_0000, data: 0)]),
      transport.setVector(0, ofQueue: 0)
    else { throw .broken("the device takes no vector for its queue") }
  }

  func request(_ data: [GuestSegment]) throws {
    _ = try driver.submitRead(0, into: data.span)
    driver.publish()
  }

  func reap() throws -> Outcome? {
    guard let completion = try driver.reap() else { return nil }
    if let error = completion.error { return .failed("\(error)") }
    return completion.written > 0 ? .done : .failed("nothing was written")
  }

  func stop() { try? driver.stop() }
}
