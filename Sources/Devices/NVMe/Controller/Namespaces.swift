internal import DMA
internal import HostIO
public import Storage

/// A namespace as the controller's thread keeps it.
struct Namespace {
  let disk: BlockDisk
  /// Whether its commands go through the ring; otherwise each is done on the spot.
  let usesRing: Bool
  var policy: InlineIOPolicy

  /// - Parameter engine: of its disk.
  init(_ disk: BlockDisk, engine: DiskEngine) {
    self.disk = disk
    usesRing = engine == .uring
    policy = InlineIOPolicy(isOn: usesRing && disk.options.engine == .automatic && !disk.file.isDirect)
  }

  /// NSZE: blocks now.
  var blockCount: UInt64 { (disk.sectorCount << 9) / UInt64(disk.blockSize) }
}

/// What a namespace's disk is like now.
public struct NVMeNamespaceState: Hashable, Sendable {
  /// Its size in bytes.
  public var byteCount: UInt64
  /// The size of its blocks in bytes.
  public var blockSize: Int
  /// Whether writes are on stable storage after a flush only; a driver may change it.
  public var isWriteback: Bool
  /// Which calls read and write the image: uring or synchronous.
  public var engine: DiskEngine
  /// Whether the image is a block device, and not a file.
  public var isOnBlockDevice: Bool

  init(_ disk: BlockDisk, _ engine: DiskEngine) {
    byteCount = disk.sectorCount << 9
    blockSize = disk.blockSize
    isWriteback = disk.cache.isWriteback
    self.engine = engine
    isOnBlockDevice = disk.file.kind == .blockDevice
  }
}

/// The disks of a controller's namespaces. Any thread may use them.
struct NamespaceDisks: Sendable {
  struct One: Sendable {
    var disk: BlockDisk
    var engine: DiskEngine
  }
  private(set) var all: [One] = []

  init(_ options: [DiskOptions]) throws(NVMeError) {
    for (i, options) in options.enumerated() {
      do throws(DiskError) {
        let disk = try BlockDisk(opening: options)
        all.append(One(disk: disk, engine: try disk.chooseEngine()))
      } catch {
        throw .disk(namespace: i + 1, error)
      }
    }
  }
}
