public import DMA
internal import HostIO
public import IOMMUInterface
internal import Synchronization
public import Virtio

/// virtio-iommu: decides what each endpoint behind it reaches, as its driver says (§5.13).
///
/// It edits `Domain` objects and turns the switches of the `EndpointSpace`s that it was given, and knows no device.
/// Requests are served on the request queue's thread, which is a control thread for the endpoints: a request that takes
/// something away waits there until no endpoint uses it, before its status is written (R159). Queue threads of
/// endpoints wait for no other thread, so this wait ends. Everything that waits does so under one lock, which no queue
/// thread of an endpoint ever takes; reading the configuration does not take it either.
public final class IOMMUDevice: VirtioDevice, IOMMU {
  /// A domain as the driver knows it.
  struct DomainEntry {
    /// nil: a bypass domain.
    var domain: Domain?
    var endpoints: Set<RequesterID> = []
  }
  /// An endpoint as the driver knows it.
  struct Endpoint {
    /// More than one only while a driver has given two functions the same number: they cannot be distinguished.
    var spaces: [EndpointSpace] = []
    /// The domain it is attached to.
    var domain: UInt32?
  }
  struct State {
    var endpoints: [RequesterID: Endpoint] = [:]
    var domains: [UInt32: DomainEntry] = [:]
    /// Mappings of all domains.
    var mappings = 0
    /// What the driver accepted; nil between a reset and then.
    var negotiated: Features?
  }
  let memory: GuestMemory
  let options: IOMMUOptions
  let faults: FaultReports
  /// Where endpoints are that may not reach anything and are attached to nothing: no address is mapped here, ever.
  let nowhere: Domain
  let state = Mutex(State())
  /// The field `bypass`.
  let bypass: Atomic<Bool>
  private let configuration: IOMMUConfiguration

  /// - Parameter memory: what guest-physical addresses mean.
  /// - Throws: what is wrong with the options, or what this host refuses.
  public init(_ memory: GuestMemory, options: IOMMUOptions = IOMMUOptions()) throws(DeviceError) {
    if let fault = options.fault { throw DeviceError(fault) }
    let reports = try rethrowing(FaultReports(maxPerSecond: options.maxFaultsPerSecond), saying: DeviceError.init)
    self.memory = memory
    self.options = options
    faults = reports
    nowhere = Domain(memory, maxMappings: 0) { reports.report(IOMMUFault($0, by: $1, reason: .domain)) }
    bypass = Atomic(options.bypass == .configured(true))
    var configuration = IOMMUConfiguration()
    configuration.pageSizeMask = options.pageSizeMask
    configuration.inputRange = options.inputRange
    configuration.domainRange = options.domainRange
    configuration.probeSize = options.probeSize
    self.configuration = configuration
  }

  public var id: DeviceID { .iommu }
  public var features: Features {
    var features: Features = [.iommuInputRange, .iommuDomainRange, .iommuMapUnmap, .iommuProbe, .iommuMMIO]
    switch options.bypass {
    case .never: break
    case .configured: features.insert(.iommuBypassConfig)
    case .accepted: features.insert(.iommuBypass)
    }
    return features.union(.ring)
  }
  /// Requests, and events.
  public var maxQueueSizes: [UInt16] { [256, 64] }

  // MARK: What it says of itself

  /// Reports of faults that were dropped, because there were too many or the driver took none.
  public var droppedFaults: UInt64 { faults.dropped }
  /// Numbers of the domains there are.
  public var domains: [UInt32] { state.withLock { $0.domains.keys.sorted() } }
  /// The endpoints it routes, each with the domain it is attached to.
  public var attachments: [RequesterID: UInt32?] { state.withLock { $0.endpoints.mapValues(\.domain) } }
  /// Mappings of a domain; nil when it does not exist or is a bypass domain.
  public func mappings(of domain: UInt32) -> Int? { state.withLock { $0.domains[domain]?.domain?.mappings } }

  // MARK: Configuration

  public var configurationSize: Int { IOMMULayout.configurationSize }

  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    var configuration = configuration
    configuration.bypass = bypass.load(ordering: .acquiring)
    let all = configuration.bytes
    for i in bytes.indices {
      let (at, isPastTheEnd) = offset.addingReportingOverflow(i)
      bytes[i] = !isPastTheEnd && all.indices.contains(at) ? all[at] : 0
    }
  }

  /// `bypass` is the one field a driver writes; values but 0 and 1 are ignored (§5.13.4.1). Returns when every endpoint
  /// without a domain is where it belongs.
  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    guard offset >= 0, offset <= IOMMULayout.bypassOffset, IOMMULayout.bypassOffset - offset < bytes.count else {
      return
    }
    let value = bytes[IOMMULayout.bypassOffset - offset]
    guard value <= 1 else { return }
    state.withLock { state in
      guard state.negotiated?.contains(.iommuBypassConfig) == true else { return }
      guard bypass.exchange(value == 1, ordering: .acquiringAndReleasing) != (value == 1) else { return }
      routeUnattached(state)
    }
  }

  /// Whether an endpoint without a domain is in bypass mode now: the first part of §5.13.6's list.
  func bypassesUnattached(_ state: borrowing State) -> Bool {
    switch options.bypass {
    case .never: false
    case .configured: bypass.load(ordering: .acquiring)
    case .accepted: state.negotiated?.contains(.iommuBypass) == true
    }
  }

  // MARK: The driver comes and goes

  public func accepted(_ features: Features) {
    state.withLock { state in
      let features = features.intersection(self.features)
      guard state.negotiated != features else { return }
      let before = bypassesUnattached(state)
      state.negotiated = features
      if bypassesUnattached(state) != before { routeUnattached(state) }
    }
  }

  /// Endpoints are attached to nothing afterwards, and there is no domain; `bypass` stays as it is (§5.13.5, R166).
  public func reset() {
    state.withLock { state in
      state.negotiated = nil
      for requester in state.endpoints.keys { detach(requester, &state) }
      faults.clear()
      // Those that were unattached before: what the driver accepted may have been what let them through.
      routeUnattached(state)
    }
  }

  /// `bypass` is what it was at power-on (§5.13.4.2, R070).
  public func systemReset() {
    state.withLock { state in
      let initial = options.bypass == .configured(true)
      guard bypass.exchange(initial, ordering: .acquiringAndReleasing) != initial else { return }
      routeUnattached(state)
    }
  }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    accepted(features)
    return group.lowerBound == IOMMULayout.requestQueue ? IOMMURequestHandler(self) : IOMMUEventHandler(faults)
  }
}

extension IOMMUFault {
  init(_ fault: DMAFault, by requester: RequesterID, reason: Reason) {
    self.init(
      reason: reason, flags: [.address, fault.access == .read ? .read : .write], endpoint: UInt32(requester.rawValue),
      address: fault.address.rawValue)
  }
}
