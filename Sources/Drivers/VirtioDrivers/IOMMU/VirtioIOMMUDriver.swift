public import DMA
internal import DriverDMA
public import IOMMUInterface
public import Virtio

/// A driver of virtio-iommu (§5.13): programs domains, one request at a time, and reads reports of faults.
///
/// Its own queues are not translated by the device they lead to, so their addresses are guest-physical (R036). A
/// request waits for its answer, up to the time limit; after an error of the queue or a time-out no more requests are
/// made, because the device may still write where the answer was to be. One thread uses it.
public final class VirtioIOMMUDriver {
  private let transport: any DriverTransport
  private let memory: GuestMemory
  private let sleep: (ContinuousClock.Instant) -> Void
  /// How long a request may take.
  public let timeout: Duration
  /// What was negotiated.
  public let features: Features
  /// What the device says of itself. `bypass` is what it was when the driver started, or what the driver set.
  public private(set) var configuration: IOMMUConfiguration
  private var requests: DriverQueue
  private var events: DriverQueue
  /// Where a request's device-readable and device-writable parts are.
  private let request: GuestAddress
  /// The driver's memory, of which all that follows is a part.
  private let area: VirtioIOMMUDriverArea
  /// Takes the driver's memory back, when the device has let go of it.
  private var giveBack: (() -> Void)?
  private let answer: GuestAddress
  /// Where reports arrive: ``slotSize`` bytes each, as many as the event queue is long; and whose buffer is which.
  private let reports: GuestAddress
  private var slots: [UInt16: Int] = [:]
  private var hasStopped = false

  /// Bytes of guest memory that the driver needs, page-aligned.
  public static var memorySize: Int { VirtioIOMMUDriverArea.byteCount }
  private static var maxProbeSize: Int { 64 << 10 }
  private static var slotSize: Int { 32 }
  /// What the driver can make use of.
  public static var supported: Features {
    [
      .iommuInputRange, .iommuDomainRange, .iommuMapUnmap, .iommuBypass, .iommuProbe, .iommuMMIO, .iommuBypassConfig,
      .version1, .eventIndex,
      .ringPacked, .inOrder, .accessPlatform, .orderPlatform, .notificationData, .ringReset,
    ]
  }

  /// Resets the device, negotiates, and starts it, with memory of its own.
  ///
  /// - Parameters:
  ///   - area: ``memorySize`` bytes of `memory` that no other code uses, page-aligned, in one region.
  ///   - wanted: features to accept if they are offered.
  ///   - sleep: returns when the device has called, and at the given time at the latest; too early does no harm.
  public convenience init(
    _ transport: any DriverTransport, memory: GuestMemory, area: GuestAddress, wanted: Features = supported,
    timeout: Duration = .seconds(10), sleep: @escaping (ContinuousClock.Instant) -> Void
  ) throws(VirtioIOMMUDriverError) {
    try self.init(transport, memory: memory, wanted: wanted, timeout: timeout, sleep: sleep) { _, _ in
      (area, DMAAddress(area.rawValue))
    }
  }

  /// Resets the device, negotiates, and sets it to work, with memory from the platform: ``memorySize`` bytes, which
  /// ``stop()`` gives back.
  ///
  /// - Parameter platform: how devices in front of the IOMMU reach memory, this one among them; so its mapper is never
  ///   one that this driver serves.
  public convenience init(
    _ transport: any DriverTransport, on platform: DriverPlatform, options: DriverOptions = DriverOptions(),
    timeout: Duration = .seconds(10)
  ) throws(VirtioIOMMUDriverError) {
    var taken: (mapper: any DMAMapper, range: MappedRange)?
    do throws(VirtioIOMMUDriverError) {
      try self.init(
        transport, memory: platform.pages.memory, wanted: Self.supported.subtracting(options.withheld),
        timeout: timeout,
        sleep: { _ in options.wait.pause() }
      ) { (offered, features) throws(VirtioIOMMUDriverError) in
        try rethrowing(platform.check(offeredFeatures: offered), as: VirtioIOMMUDriverError.platform)
        let mapper = platform.mapper(negotiated: features)
        let range = try rethrowing(
          mapper.allocateRange(UInt64(Self.memorySize), alignment: GuestPages.pageSize),
          as: { (error: DMAError) in VirtioIOMMUDriverError.platform(.dma(error)) })
        taken = (mapper, range)
        return (range.guest, range.address)
      }
    } catch {
      transport.status = []
      if let taken, transport.status.isEmpty { try? taken.mapper.unmapRange(taken.range) }
      throw error
    }
    if let taken { giveBack = { try? taken.mapper.unmapRange(taken.range) } }
  }

  /// - Parameter place: where the driver's memory is, and where the device sees it, by what is offered and what will be
  ///   accepted.
  private init(
    _ transport: any DriverTransport, memory: GuestMemory, wanted: Features, timeout: Duration,
    sleep: @escaping (ContinuousClock.Instant) -> Void,
    place: (_ offered: Features, _ features: Features) throws(VirtioIOMMUDriverError) -> (GuestAddress, DMAAddress)
  ) throws(VirtioIOMMUDriverError) {
    guard transport.deviceID == .iommu else { throw .notAnIOMMU(transport.deviceID) }
    try transport.reset(within: timeout, sleep: sleep)
    let (offered, features) = try transport.features(accepting: wanted.intersection(Self.supported))
    var area: VirtioIOMMUDriverArea
    do throws(VirtioIOMMUDriverError) {
      let (guest, device) = try place(offered, features)
      area = VirtioIOMMUDriverArea(memory, at: guest, device: device)
    } catch {
      transport.status = [.acknowledge, .driver, .failed]
      throw error
    }
    try transport.agree(on: features)
    self.transport = transport
    self.memory = memory
    self.timeout = timeout
    self.sleep = sleep
    self.features = features
    configuration = try transport.readIOMMUConfiguration(maxProbeSize: Self.maxProbeSize)
    requests = try area.makeQueue(IOMMULayout.requestQueue, of: transport, features: features)
    events = try area.makeQueue(IOMMULayout.eventQueue, of: transport, features: features)
    request = area.take(4096)
    answer = area.take(Self.maxProbeSize + 4096)
    reports = area.take(Self.slotSize * Int(VirtioIOMMUDriverArea.maxQueueSize))
    guard area.isThere else { throw .memory(area.start) }
    self.area = area
    try start()
  }

  /// Sets the device to work, with room for as many reports as the event queue is long.
  private func start() throws(VirtioIOMMUDriverError) {
    transport.enableQueue(IOMMULayout.requestQueue, requests.layout)
    transport.enableQueue(IOMMULayout.eventQueue, events.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    for slot in 0..<Int(events.layout.size) { try offer(slot) }
    if events.publish() { transport.notify(IOMMULayout.eventQueue, data: events.notificationData) }
  }

  /// Resets the device: nothing is attached to anything any more. The driver is of no use afterwards.
  public func stop() {
    hasStopped = true
    transport.status = []
    // A device that does not come out of its reset keeps the memory (R179).
    guard transport.status.isEmpty else { return }
    giveBack?()
    giveBack = nil
  }

  // MARK: Requests

  /// Attaches an endpoint to a domain, which is created if it does not exist; an endpoint in another domain is detached
  /// from it.
  ///
  /// - Parameter bypass: the domain is a bypass domain; the flag must match a domain that exists already.
  public func attach(_ endpoint: RequesterID, to domain: UInt32, bypass: Bool = false) throws(VirtioIOMMUDriverError) {
    if bypass, !features.contains(.iommuBypassConfig) { throw .unsupported(.iommuBypassConfig) }
    try perform(.attach(domain: domain, endpoint: UInt32(endpoint.rawValue), flags: bypass ? .bypass : []))
  }

  /// Detaches an endpoint from its domain; when this returns it can use no mapping of it.
  public func detach(_ endpoint: RequesterID, from domain: UInt32) throws(VirtioIOMMUDriverError) {
    try perform(.detach(domain: domain, endpoint: UInt32(endpoint.rawValue)))
  }

  /// Makes `byteCount` bytes of guest memory visible to a domain's endpoints.
  ///
  /// - Parameter isMMIO: registers are there, not memory.
  public func map(
    _ address: DMAAddress, byteCount: UInt64, to guest: GuestAddress, permissions: DMAPermissions, in domain: UInt32,
    isMMIO: Bool = false
  ) throws(VirtioIOMMUDriverError) {
    var flags: IOMMUMapFlags = []
    if permissions.contains(.read) { flags.insert(.read) }
    if permissions.contains(.write) { flags.insert(.write) }
    if isMMIO {
      guard features.contains(.iommuMMIO) else { throw .unsupported(.iommuMMIO) }
      flags.insert(.mmio)
    }
    let last = try last(address, byteCount)
    try perform(.map(domain: domain, first: address.rawValue, last: last, physical: guest.rawValue, flags: flags))
  }

  /// Removes the mappings inside the `byteCount` bytes at `address`; when this returns no endpoint can use one.
  public func unmap(_ address: DMAAddress, byteCount: UInt64, in domain: UInt32) throws(VirtioIOMMUDriverError) {
    let last = try last(address, byteCount)
    try perform(.unmap(domain: domain, first: address.rawValue, last: last))
  }

  private func last(_ address: DMAAddress, _ byteCount: UInt64) throws(VirtioIOMMUDriverError) -> UInt64 {
    guard byteCount > 0, address.rawValue <= .max - (byteCount - 1) else { throw .range }
    return address.rawValue + (byteCount - 1)
  }

  /// What an endpoint keeps for itself; subtypes that are not known are reserved (§5.13.6.8.1.1). Empty where
  /// VIRTIO_IOMMU_F_PROBE is not negotiated.
  public func probe(_ endpoint: RequesterID) throws(VirtioIOMMUDriverError) -> [IOMMUReservedMemory] {
    guard features.contains(.iommuProbe) else { return [] }
    let size = Int(configuration.probeSize)
    try perform(.probe(endpoint: UInt32(endpoint.rawValue)), properties: size)
    var bytes = [UInt8](repeating: 0, count: size)
    var span = bytes.mutableSpan
    guard memory.copy(from: answer, into: &span) == size else { throw .memory(answer) }
    return IOMMUReservedMemory.list(bytes.span).map { $0.subtype == .msi ? $0 : IOMMUReservedMemory($0.range) }
  }

  /// Sets whether endpoints without a domain are in bypass mode.
  public func setBypass(_ bypass: Bool) throws(VirtioIOMMUDriverError) {
    guard features.contains(.iommuBypassConfig) else { throw .unsupported(.iommuBypassConfig) }
    let value: InlineArray<1, UInt8> = [bypass ? 1 : 0]
    transport.writeConfiguration(at: IOMMULayout.bypassOffset, from: value.span)
    configuration.bypass = bypass
  }

  /// Asks, and waits for the status.
  private func perform(_ asked: IOMMURequest, properties: Int = 0) throws(VirtioIOMMUDriverError) {
    guard !hasStopped else { throw .stopped }
    let bytes = asked.bytes
    // A device that writes no tail is found out: no status has this number.
    let tail = GuestAddress(answer.rawValue + UInt64(properties))
    guard memory.copy(bytes.span, to: request) == bytes.count,
      memory.copy([0xff, 0, 0, 0].span, to: tail) == IOMMULayout.tailSize
    else {
      throw .memory(request)
    }
    let room = UInt32(properties + IOMMULayout.tailSize)
    let readable: InlineArray<1, DriverBuffer> = [area.buffer(request, count: UInt32(bytes.count))]
    let writable: InlineArray<1, DriverBuffer> = [area.buffer(answer, count: room)]
    do throws(DriverQueueError) {
      _ = try requests.add(readable: readable.span, writable: writable.span)
    } catch {
      hasStopped = true
      throw .queue(error)
    }
    if requests.publish() { transport.notify(IOMMULayout.requestQueue, data: requests.notificationData) }
    let used = try waitForAnswer()
    guard used.written > 0 else { throw .notRecognized }
    var status: InlineArray<1, UInt8> = [0xff]
    var span = status.mutableSpan
    guard memory.copy(from: tail, into: &span) == 1 else { throw .memory(tail) }
    guard status[0] == 0 else { throw status[0] == 0xff ? .notRecognized : .refused(IOMMUStatus(rawValue: status[0])) }
  }

  // MARK: Faults

  /// Reports that have come since the last time, oldest first, and room for as many again. Waits for nothing.
  public func receiveFaults() throws(VirtioIOMMUDriverError) -> [IOMMUFault] {
    guard !hasStopped else { throw .stopped }
    var found: [IOMMUFault] = []
    do throws(DriverQueueError) {
      while let used = try events.reap() {
        guard let slot = slots.removeValue(forKey: used.id) else { continue }
        if let fault = fault(in: slot, count: Int(used.written)) { found.append(fault) }
        try add(slot)
      }
    } catch {
      hasStopped = true
      throw .queue(error)
    }
    if events.publish() { transport.notify(IOMMULayout.eventQueue, data: events.notificationData) }
    return found
  }

  private func fault(in slot: Int, count: Int) -> IOMMUFault? {
    var block = InlineArray<24, UInt8>(repeating: 0)
    var bytes = block.mutableSpan
    guard count >= IOMMULayout.faultSize, memory.copy(from: place(of: slot), into: &bytes) == IOMMULayout.faultSize
    else { return nil }
    return IOMMUFault(block.span)
  }

  private func place(of slot: Int) -> GuestAddress { GuestAddress(reports.rawValue + UInt64(slot * Self.slotSize)) }

  private func offer(_ slot: Int) throws(VirtioIOMMUDriverError) {
    try rethrowing(add(slot), as: VirtioIOMMUDriverError.queue)
  }

  private func add(_ slot: Int) throws(DriverQueueError) {
    let none = InlineArray<0, DriverBuffer>(repeating: DriverBuffer(DMAAddress(0), count: 0))
    let buffer: InlineArray<1, DriverBuffer> = [area.buffer(place(of: slot), count: UInt32(IOMMULayout.faultSize))]
    slots[try events.add(readable: none.span, writable: buffer.span)] = slot
  }

  // MARK: Waiting

  /// The one request that is with the device, used.
  private func waitForAnswer() throws(VirtioIOMMUDriverError) -> UsedBuffer {
    let clock = ContinuousClock()
    let end = clock.now + timeout
    while true {
      do throws(DriverQueueError) {
        if let used = try requests.reap() { return used }
      } catch {
        hasStopped = true
        throw .queue(error)
      }
      guard clock.now < end else {
        hasStopped = true
        throw .timeout
      }
      if !requests.armCall() { sleep(end) }
    }
  }
}
