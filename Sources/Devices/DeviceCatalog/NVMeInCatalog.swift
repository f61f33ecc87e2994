public import DriverDMA
internal import IOMMUInterface
public import NVMe
public import PCI
public import Storage

extension NVMeController: DiskFunction {
  public convenience init(_ disk: DiskOptions, on master: BusMaster) throws {
    try self.init(NVMeOptions(disk), on: master)
  }
}

extension NVMeDriver: FunctionDriver {
  public convenience init(
    _ access: any PCIFunctionAccess, mapper: any DMAMapper, options: FunctionDriverOptions
  ) throws(NVMeDriverError) {
    // A message for the queue of commands that manage the controller, and one for that of reads and writes.
    let messages = (0..<2).map { InterruptMessage(address: 0xFEE0_0000, data: 0x40 + UInt32($0)) }
    try self.init(
      access, mapper: mapper,
      options: NVMeDriverOptions(
        queueSize: 32, format: options.usesLists ? .sgl : .prp, messages: messages, wait: options.wait))
  }

  public var byteCount: UInt64? { blockCount * UInt64(blockSize) }
  public func receive(from place: UInt64, into data: Span<GuestSegment>) throws(NVMeDriverError) -> Int {
    try read(place / UInt64(blockSize), into: data)
    return GuestSegment.byteCount(data)
  }
  public func send(to place: UInt64, from data: Span<GuestSegment>) throws(NVMeDriverError) {
    try write(place / UInt64(blockSize), from: data)
  }
}
