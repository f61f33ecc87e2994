import DMA
import DriverDMA
import Foundation
import IOMMUInterface
import Storage
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioTestKit

/// A way for devices to reach memory, as a platform may have it.
enum MapperKind: String, CaseIterable {
  case direct, strict, deferred, bounce, bounceBehindIOMMU, grants, premapped, premappedBounce, debugging, xen
}

extension RingKind {
  /// A driver that polls a device in its own thread looks twice and has seen everything.
  func options(size: UInt16 = 64, segments: Int = 8, withheld: Features = []) -> DriverOptions {
    DriverOptions(
      queue: QueueOptions(size: size, segments: segments, indirect: indirect),
      withheld: packed ? withheld : withheld.union(.ringPacked),
      wait: BoundedWait(attempts: 3))
  }
}

/// Guest memory, a mapper over a part of it, and what a device behind that mapper reaches.
final class DriverRig {
  let kind: MapperKind
  let memory: GuestMemory
  /// The driver's own memory. Of a bouncing platform the device reaches none of it.
  let pages: GuestPages
  /// What a bouncing platform shares with its devices.
  let shared: GuestPages
  let domain: Domain
  let iommu: ModelIOMMU
  let grants: ModelGrants
  let addresses: IOVAAllocator
  let xen: XenMachine
  let mapper: any DMAMapper
  private var taken: [(GuestAddress, UInt64)] = []

  static let size = 32 << 20
  static let sharedStart: UInt64 = 24 << 20

  init(_ kind: MapperKind, batch: Int = 16, poolSize: UInt64 = 4 << 20) throws {
    self.kind = kind
    memory = try GuestMemory(byteCount: Self.size)
    pages = GuestPages(memory, at: GuestAddress(1 << 20), byteCount: 20 << 20)
    shared = GuestPages(memory, at: GuestAddress(Self.sharedStart), byteCount: 8 << 20)
    domain = Domain(memory)
    iommu = ModelIOMMU(domain, isLazy: kind == .deferred)
    grants = ModelGrants(domain)
    // A Xen guest's pages are scattered, but for those that it asked to have in one piece.
    xen = try XenMachine(memory, scattered: 1 << 20..<Self.sharedStart)
    addresses = IOVAAllocator(aperture: 0x1_0000...0xffff_ffff, reserved: [0xfee0_0000...0xfeef_ffff])
    let strict = IOMMUMapper(iommu, addresses: addresses, pages: pages)
    let (domain, shared) = (domain, shared)
    func confined() throws -> BounceMapper {
      try domain.map(
        DMAAddress(Self.sharedStart), byteCount: 8 << 20, to: GuestAddress(Self.sharedStart), permissions: .readWrite)
      return try BounceMapper(over: DirectMapper(shared), poolSize: poolSize)
    }
    switch kind {
    case .direct: mapper = DirectMapper(pages)
    case .strict: mapper = strict
    case .deferred: mapper = IOMMUMapper(iommu, addresses: addresses, pages: pages, flush: .deferred(batch: batch))
    case .bounce: mapper = try confined()
    case .bounceBehindIOMMU: mapper = try BounceMapper(over: strict, poolSize: poolSize)
    case .grants: mapper = try GrantMapper(grants, pages: pages)
    case .premapped:
      mapper = try PremappedMapper(over: strict, pages: pages, toDevice: 64, fromDevice: 64, bufferSize: 8192)
    case .premappedBounce:
      mapper = try PremappedMapper(over: confined(), pages: pages, toDevice: 64, fromDevice: 64, bufferSize: 8192)
    case .xen: mapper = try XenMapper(xen, contiguous: shared, poolSize: poolSize)
    case .debugging: mapper = DebuggingMapper(over: strict, pages: pages)
    }
  }

  /// A rig with the driver of a disk.
  static func withDisk(
    _ kind: MapperKind, poolSize: UInt64 = 4 << 20, _ options: DriverOptions
  ) throws -> (rig: DriverRig, disk: Disk, transport: InProcessTransport, driver: BlockDriver) {
    let (rig, disk) = (try DriverRig(kind, poolSize: poolSize), try Disk())
    let transport = rig.transport(disk.device)
    return (rig, disk, transport, try BlockDriver(transport, on: rig.platform(), options: options))
  }

  /// What the device reaches through the platform.
  var platformSpace: any DMASpace {
    switch kind {
    case .direct: PhysicalSpace(memory)
    case .xen: PhysicalSpace(xen.machine)
    default: domain
    }
  }

  func platform(
    isXen: Bool = false, isRestricted: Bool = false, mismatch: DriverPlatform.Mismatch = .bypass
  ) -> DriverPlatform {
    DriverPlatform(pages: pages, mapper: mapper, isXen: isXen, isRestricted: isRestricted, mismatch: mismatch)
  }

  func transport(_ device: any VirtioDevice, offered: Features? = nil) -> InProcessTransport {
    InProcessTransport(
      device, offered: offered ?? device.features.union(.accessPlatform), platform: platformSpace,
      physical: PhysicalSpace(memory))
  }

  // MARK: Buffers

  /// Memory for a request, `skew` bytes into a page: from the pool if there is one.
  func buffer(_ count: Int, _ direction: DMADirection, skew: UInt64 = 0) throws -> GuestAddress {
    if let pool = mapper as? PremappedMapper {
      guard let start = pool.take(direction) else { throw DMAError.outOfMemory(UInt64(count)) }
      return GuestAddress(start.rawValue + skew)
    }
    let size = UInt64(count) + skew
    let start = try pages.allocate(size)
    taken.append((start, size))
    return GuestAddress(start.rawValue + skew)
  }

  /// Gives all of ``buffer(_:_:skew:)`` back.
  func giveBack(_ buffers: [GuestAddress]) {
    if let pool = mapper as? PremappedMapper { for one in buffers { pool.give(one) } }
    for (start, size) in taken { pages.free(start, byteCount: size) }
    taken = []
  }

  func fill(_ address: GuestAddress, _ bytes: [UInt8]) { memory.write(bytes, at: address) }
  func bytes(_ address: GuestAddress, _ count: Int) -> [UInt8] { memory.bytes(count, at: address) }
}

/// Memory as a device reaches it: through its space, with its permissions, a byte at a time.
struct DeviceEye {
  let space: any DMASpace

  /// Nil where a read faults.
  func read(_ address: DMAAddress, _ count: Int) -> [UInt8]? {
    with(address, count, .read) { cells, lead in
      (lead..<lead + count).map { i in
        let cell = UInt16(littleEndian: cells.load16(at: i & ~1))
        return UInt8(truncatingIfNeeded: i & 1 == 0 ? cell : cell >> 8)
      }
    }
  }

  /// False where a write faults.
  func write(_ bytes: [UInt8], at address: DMAAddress) -> Bool {
    let done: Bool? = with(address, bytes.count, .write) { cells, lead in
      for (n, byte) in bytes.enumerated() {
        let i = lead + n
        let old = UInt16(littleEndian: cells.load16(at: i & ~1))
        cells.store16(
          (i & 1 == 0 ? old & 0xff00 | UInt16(byte) : old & 0x00ff | UInt16(byte) << 8).littleEndian, at: i & ~1)
      }
      return true
    }
    return done ?? false
  }

  private func with<T>(
    _ address: DMAAddress, _ count: Int, _ access: DMAAccess, _ body: (borrowing RingMemory, Int) -> T
  ) -> T? {
    var iotlb = IOTLB(space)
    _ = iotlb.beginRound()
    defer { iotlb.endRound() }
    let lead = Int(address.rawValue & 1)
    do throws(DMAInterruption) {
      let cells = try iotlb.ring(DMAAddress(address.rawValue & ~1), count: (lead + count + 1) & ~1, for: access)
      return body(cells, lead)
    } catch {
      return nil
    }
  }
}

/// A disk in a file that goes away with it.
final class Disk {
  private let folder: TemporaryFolder
  let path: String
  let device: BlockDevice

  init(sectors: Int = 4096, readOnly: Bool = false, _ change: (inout BlockOptions) -> Void = { _ in }) throws {
    folder = try TemporaryFolder()
    path = try folder.image(size: UInt64(sectors) * 512)
    var options = BlockOptions(path: path)
    options.engine = .synchronous
    options.sizePollInterval = nil
    options.readOnly = readOnly
    options.serial = "a disk for drivers"
    change(&options)
    device = try BlockDevice(options)
  }

  /// What is on the disk.
  func bytes(_ range: Range<Int>) throws -> [UInt8] {
    let file = try FileHandle(forReadingFrom: URL(filePath: path))
    defer { try? file.close() }
    try file.seek(toOffset: UInt64(range.lowerBound))
    return [UInt8](try file.read(upToCount: range.count) ?? Data())
  }
}
