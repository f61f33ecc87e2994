import DMA
import HostIO
import Storage

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
