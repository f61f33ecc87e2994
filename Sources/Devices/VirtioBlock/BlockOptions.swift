public import Storage

/// How a block device is to be: its disk, and what its queues are like.
@dynamicMemberLookup
public struct BlockOptions: Sendable {
  /// The disk that it shows; its options can be named as if they were the device's.
  public var disk: DiskOptions
  /// Request queues, each with a thread of its own: 1...256. With more than one VIRTIO_BLK_F_MQ is offered.
  public var queueCount = 1
  /// Most descriptors a queue may have: 2...32768. A server of the device may make its queues smaller.
  public var queueSize: UInt16 = 1024
  /// Most data segments in a request; nil: as many as a queue of 128 descriptors takes (or one of ``queueSize``, if
  /// that is smaller). A value beyond the size of the queues, less two, allows requests that cannot be queued.
  public var maxSegments: Int?
  /// Most bytes in a segment; nil: no limit, and VIRTIO_BLK_F_SIZE_MAX is not offered. At least 4096.
  public var maxSegmentSize: UInt32?

  /// A device with default options, for the disk whose contents are the image at `path`.
  public init(path: String) { disk = DiskOptions(path: path) }
  /// A disk with these options, and the usual ones of the device.
  public init(disk: DiskOptions) { self.disk = disk }

  /// An option of the disk.
  public subscript<Value>(dynamicMember option: WritableKeyPath<DiskOptions, Value>) -> Value {
    get { disk[keyPath: option] }
    set { disk[keyPath: option] = newValue }
  }
}
