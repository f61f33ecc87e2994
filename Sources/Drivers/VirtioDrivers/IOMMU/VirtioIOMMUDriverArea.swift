internal import DMA
internal import Virtio

/// The memory of a virtio-iommu driver: where it is for the driver and for the device, and what of it is taken.
struct VirtioIOMMUDriverArea {
  /// Bytes of it: the areas of both queues, then the request's memory, then the reports'.
  static var byteCount: Int { 192 << 10 }
  static var maxQueueSize: UInt16 { 64 }

  let start: GuestAddress
  private let memory: GuestMemory
  /// What is added to a guest-physical address for the device, modulo 2^64.
  private let offset: UInt64
  private var next: UInt64

  init(_ memory: GuestMemory, at guest: GuestAddress, device: DMAAddress) {
    self.memory = memory
    start = guest
    offset = device.rawValue &- guest.rawValue
    next = guest.rawValue
  }

  /// Whether all of it is in one region.
  var isThere: Bool { memory.cells(at: start, byteCount: Self.byteCount) != nil }

  /// Whole pages for so many bytes, behind what was taken before.
  mutating func take(_ byteCount: Int) -> GuestAddress {
    defer { next += UInt64((byteCount + 4095) / 4096 * 4096) }
    return GuestAddress(next)
  }

  /// Where the device finds what the driver finds at `guest`.
  func device(_ guest: GuestAddress) -> DMAAddress { DMAAddress(guest.rawValue &+ offset) }

  /// A part of it as a piece of a request.
  func buffer(_ guest: GuestAddress, count: UInt32) -> DriverBuffer { DriverBuffer(device(guest), count: count) }

  /// A queue as large as the device and the area take it.
  mutating func makeQueue(
    _ index: Int, of transport: any DriverTransport, features: Features
  ) throws(VirtioIOMMUDriverError) -> DriverQueue {
    let size = try Self.size(of: index, transport, isPacked: features.contains(.ringPacked))
    let none = DMAAddress(0)
    let bytes = QueueLayout(size: size, descriptorArea: none, driverArea: none, deviceArea: none)
      .byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    let (descriptors, driver, device) = (take(bytes.descriptor), take(bytes.driver), take(bytes.device))
    guard
      let cells = DriverQueueMemory(
        memory, size: size, features: features, descriptorArea: descriptors, driverArea: driver, deviceArea: device)
    else { throw .memory(descriptors) }
    let layout = QueueLayout(
      size: size, descriptorArea: self.device(descriptors), driverArea: self.device(driver),
      deviceArea: self.device(device))
    do throws(DriverQueueError) { return try DriverQueue(layout: layout, features: features, memory: cells) } catch {
      throw .queue(error)
    }
  }

  private static func size(
    of index: Int, _ transport: any DriverTransport, isPacked: Bool
  ) throws(VirtioIOMMUDriverError) -> UInt16 {
    let size = min(transport.maxQueueSize(index), maxQueueSize)
    guard size > 0 else { throw .noQueue(index) }
    // Split rings have powers of 2 only.
    return isPacked ? size : 1 << (15 - UInt16(size.leadingZeroBitCount))
  }
}

/// What the driver does before its device works (§3.1.1).
extension DriverTransport {
  /// Resets the device, and waits until it says that it is.
  func reset(
    within timeout: Duration, sleep: (ContinuousClock.Instant) -> Void
  ) throws(VirtioIOMMUDriverError) {
    let clock = ContinuousClock()
    let end = clock.now + timeout
    status = []
    while !status.isEmpty {
      guard clock.now < end else { throw .timeout }
      sleep(min(end, clock.now + .milliseconds(1)))
    }
  }

  /// What the device offers, and what of it is to be accepted.
  func features(
    accepting wanted: Features
  ) throws(VirtioIOMMUDriverError) -> (offered: Features, accepted: Features) {
    status = .acknowledge
    status = [.acknowledge, .driver]
    let offered = deviceFeatures
    let features = offered.intersection(wanted)
    let needed: Features = [.version1, .iommuMapUnmap]
    guard features.isSuperset(of: needed) else {
      status = [.acknowledge, .driver, .failed]
      throw .missingFeatures(needed.subtracting(features))
    }
    return (offered, features)
  }

  /// Accepts features, if the device accepts that.
  func agree(on features: Features) throws(VirtioIOMMUDriverError) {
    accept(features)
    status = [.acknowledge, .driver, .featuresOK]
    guard status.contains(.featuresOK) else {
      status = [.acknowledge, .driver, .failed]
      throw .featuresRefused(features)
    }
  }

  /// What the device says of itself, all of one generation (§2.5.1).
  func readIOMMUConfiguration(maxProbeSize: Int) throws(VirtioIOMMUDriverError) -> IOMMUConfiguration {
    var block = InlineArray<40, UInt8>(repeating: 0)
    // A device that changes it all the time gets no further than this.
    for _ in 0..<1000 {
      let generation = configurationGeneration
      var bytes = block.mutableSpan
      readConfiguration(at: 0, into: &bytes)
      guard generation == configurationGeneration else { continue }
      guard let configuration = IOMMUConfiguration(block.span), configuration.probeSize <= maxProbeSize else { break }
      return configuration
    }
    throw .configuration
  }
}
