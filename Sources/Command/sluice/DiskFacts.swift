import Storage
import VirtioServing

/// What `explain` says of a disk, virtio's or a namespace.
struct DiskFacts {
  var options: DiskOptions
  var byteCount: UInt64
  var blockSize: Int
  /// What it is now: a guest may change it.
  var isWriteback: Bool
  /// What was chosen.
  var engine: DiskEngine
  var isOnBlockDevice: Bool

  private var cache: CacheArgument { isWriteback ? .writeback : .writethrough }

  /// The image, for people.
  var image: String {
    "\(options.path): \(byteCount) bytes in blocks of \(blockSize), \(isOnBlockDevice ? "a block device" : "a raw file"), "
      + (options.readOnly ? "read-only" : "writable")
  }
  /// How it is accessed, for people.
  var access: String {
    "cache \(cache.rawValue), \(options.direct ? "around" : "through") the host's page cache, "
      + "engine \(engine.rawValue), lock \(options.lock.rawValue)"
  }
  var imageValues: [String: ReportFact.Value] {
    [
      "image": .text(options.path), "image_bytes": .number(byteCount), "block_size": .number(UInt64(blockSize)),
      "read_only": .flag(options.readOnly),
    ]
  }
  var accessValues: [String: ReportFact.Value] {
    [
      "cache": .text(cache.rawValue), "direct": .flag(options.direct), "engine": .text(engine.rawValue),
      "lock": .text(options.lock.rawValue),
    ]
  }
  /// Both, for people and for programs.
  var facts: [ReportFact] {
    [ReportFact("image", image, imageValues), ReportFact("access", access, accessValues)]
  }
}
