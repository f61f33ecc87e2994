import DMA
import DeviceCatalog
import DriverDMA
import IOMMUInterface
import Machine
import Virtio
import VirtioDrivers

/// A machine with one disk in memory, whose driver reads: what is measured of each IOMMU and mapper.
///
/// One thread uses it. A batch of reads of 4 KiB is submitted, published with one notification, and waited for with one
/// interrupt, so that the more there are in it the less of a request is the waking of threads.
final class RequestLoad {
  /// How the driver's data gets to be reachable.
  enum Mapping: String, Sendable, CaseIterable {
    /// The device has no feature bit: physical addresses.
    case physical
    /// It has, and its addresses pass as they are: there is no IOMMU, or it lets them.
    case bypass
    /// Each request's data is mapped, and unmapped before its driver goes on. Grants are always used so.
    case strict
    /// As before, but what is unmapped is forgotten in batches of ``RequestLoad/flushBatch``.
    case deferred
    /// Copied through a pool that was mapped once.
    case bounce
    /// In buffers that were mapped once.
    case premapped
  }
  /// Unmaps that one flush ends when it is deferred.
  static var flushBatch: Int { 64 }
  /// Bytes of a request.
  static var requestSize: Int { 4096 }
  private static var diskSize: Int { 1 << 20 }

  /// Mappings that make sense on a platform; the other half of ``Mapping`` is not there, or the same as one of these.
  static func mappings(on platform: Platform) -> [Mapping] {
    switch platform.unit {
    case .none: [.physical, .bypass, .bounce, .premapped]
    case .vtd, .amdvi, .virtioIOMMU, .sun4u: [.bypass, .strict, .deferred, .bounce, .premapped]
    case .tce: [.strict, .deferred, .bounce, .premapped]
    case .grants: [.strict, .bounce, .premapped]
    }
  }

  private let machine: RunningMachine
  private let device: PluggedDevice
  private let driver: BlockDriver
  private let wait: BoundedWait
  private let acknowledge: () -> Void
  private let buffers: [GuestAddress]
  private var block = 0

  /// - Parameter depth: requests of a batch, 1...64.
  init(_ platform: Platform, _ mapping: Mapping, depth: Int) throws(MachineError) {
    guard 1...64 ~= depth else { throw .missing("a batch has 1 to 64 requests, not \(depth)") }
    machine = try RunningMachine(platform)
    var description = DeviceDescription(name: "disk", kind: .block)
    description.property = mapping == .physical ? .off : .on
    description.byteCount = Self.diskSize
    device = try machine.plug(description)
    try machine.boot()
    let guest = machine.guest
    let hasUnit = platform.unit != .none && platform.unit != .grants
    let domain = try machine.setState(!hasUnit ? .none : mapping == .bypass ? .bypass : .attached, of: device.requester)
    var buffers = (0..<depth).map { GuestAddress(MemoryPlan.buffers + UInt64($0 * Self.requestSize)) }
    var mapper: any DMAMapper
    do throws(DMAError) {
      let flush = mapping == .deferred ? IOMMUMapper.Flush.deferred(batch: Self.flushBatch) : .strict
      mapper = try guest.mapper(domain, flush: flush) ?? DirectMapper(guest.pages)
      if mapping == .bounce { mapper = try BounceMapper(over: mapper, poolSize: 512 << 10) }
      if mapping == .premapped {
        let pool = try PremappedMapper(
          over: mapper, pages: guest.pages, toDevice: 0, fromDevice: depth, bufferSize: UInt64(Self.requestSize))
        buffers = (0..<depth).compactMap { _ in pool.take(.fromDevice) }
        mapper = pool
      }
    } catch {
      throw .dma(error)
    }
    self.buffers = buffers
    let transport = try machine.pciTransport(device.requester, legacy: false)
    acknowledge = { _ = transport.takeISR() }
    wait = machine.wait(acknowledge)
    let options = DriverOptions(queue: QueueOptions(size: 128, segments: 1), withheld: .ringPacked, wait: wait)
    driver = try rethrowing(
      BlockDriver(transport, on: guest.driverPlatform(mapper), options: options), as: MachineError.driver)
    try check()
  }

  deinit { try? driver.stop() }

  /// Reads batch after batch, all over the disk.
  func run(batches: Int) throws(MachineError) {
    do throws(DriverError) { for _ in 0..<batches { try runBatch() } } catch { throw .driver(error) }
  }

  private func runBatch() throws(DriverError) {
    for buffer in buffers {
      let data: InlineArray<1, GuestSegment> = [GuestSegment(buffer, count: UInt32(Self.requestSize))]
      _ = try driver.submitRead(UInt64(block * (Self.requestSize / 512)), into: data.span)
      block = (block + 1) % (Self.diskSize / Self.requestSize)
    }
    // Armed first: the interrupt is for the last of them, and none comes earlier.
    _ = driver.armCall(after: UInt16(buffers.count - 1))
    driver.publish()
    var left = buffers.count
    let isDone = try wait.until { () throws(DriverError) in
      while left > 0, let completion = try driver.reap() {
        if let error = completion.error { throw error }
        left -= 1
      }
      return left == 0
    }
    guard isDone else { throw .timeout }
    // The pin is low before the next batch, so that its interrupt is one.
    acknowledge()
  }

  /// That it is the disk's bytes that come, and by the path that was asked for.
  private func check() throws(MachineError) {
    for page in 0..<Self.diskSize / Self.requestSize {
      let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: page &+ 1), count: Self.requestSize)
      _ = device.contents?.copy(bytes.span, to: page * Self.requestSize)
    }
    try run(batches: 2)
    for (i, buffer) in buffers.enumerated() {
      var bytes = [UInt8](repeating: 0, count: Self.requestSize)
      var span = bytes.mutableSpan
      let number = UInt8(truncatingIfNeeded: buffers.count + i + 1)
      guard machine.guest.memory.copy(from: buffer, into: &span) == Self.requestSize, bytes.allSatisfy({ $0 == number })
      else {
        throw .missing("what was read is not what is on the disk")
      }
    }
    let counts = device.counts
    guard counts.physical.isUsed != counts.platform.isUsed,
      counts.physical.isUsed == (device.description.property == .off)
    else {
      throw .missing("the requests went another way than they should have")
    }
  }
}
