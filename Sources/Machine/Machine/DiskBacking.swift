internal import DMA
internal import HostIO
internal import Storage

/// What is behind a device that stores what is written: an image, or memory. It has to live until the device has opened
/// it.
struct DiskBacking: ~Copyable {
  let options: DiskOptions
  /// The bytes, where they are memory.
  let contents: HostMapping?
  private let file: MemoryFile?

  init(_ description: DeviceDescription) throws(MachineError) {
    if let image = description.image {
      options = DiskOptions(path: image)
      contents = nil
      file = nil
      return
    }
    let memory = try rethrowing(
      MemoryFile(name: "disk", size: UInt64(description.byteCount)), saying: MachineError.host)
    let descriptor = memory.descriptor.rawValue
    contents = try rethrowing(
      HostMapping(descriptor: descriptor, offset: 0, byteCount: description.byteCount),
      as: { (error: MappingError) in MachineError.host("no memory for a disk (\(error.code))") })
    var options = DiskOptions(path: "/proc/self/fd/\(descriptor)")
    options.lock = .never
    options.sizePollInterval = nil
    self.options = options
    file = .some(consume memory)
  }
}
