public import DMA
public import IOMMUInterface
import Synchronization

/// A PCI hierarchy: a root bus, number 0, and what is behind its bridges.
///
/// Processors' threads read and write configuration, memory and I/O, several at once; functions come and go meanwhile.
/// What a guest changes about a function's reach (bus master enable, bus numbers, BARs) is in force when its write
/// returns; that may wait for queue threads, which never wait for the bus.
///
/// Locks, in the order in which they are taken: `changes`, `topology`, a function's configuration space, its MSI-X
/// table or pin.
public final class PCIBus: Sendable {
  /// A function that is plugged in.
  struct Plugged: Sendable {
    var id: Int
    var function: any PCIFunction
    var slot: PCISlot
    /// The bridge it is behind; nil: on the root bus.
    var bridge: Int?
    var endpoint: DMAEndpoint
    var bypassesIOMMU: Bool
    /// What the guest had programmed when the bus last looked.
    var decoding = ConfigurationSpace.Decoding()
    /// The IOMMU that has adopted the endpoint.
    var adopter: (any IOMMU)?
    var isOpen = false
    var isBlocked = false
    /// Of a bridge to a conventional bus: what those behind it are to an IOMMU.
    var shared: Shared?
  }
  /// The one endpoint of several functions; their own endpoints follow it.
  struct Shared: Sendable {
    var endpoint: EndpointSpace
    var adopter: (any IOMMU)?
    var isBlocked = false
  }
  struct Topology: Sendable {
    /// In the order in which buses are searched: by slot.
    var plugged: [Plugged] = []
    var iommu: (any IOMMU)?
    var nextID = 0
  }
  let topology = Mutex(Topology())
  /// One change of what functions reach at a time.
  let changes = Mutex(())
  let configurationAddress = Mutex<UInt32>(0)
  let wires: InterruptWires
  /// The machine's memory, which functions reach.
  public let memory: GuestMemory
  private let messages: any MessageInterrupts

  /// - Parameters:
  ///   - messages: where message signalled interrupts go.
  ///   - lines: where interrupt pins go; nil: nowhere.
  public init(_ memory: GuestMemory, messages: any MessageInterrupts, lines: (any LineInterrupts)? = nil) {
    self.memory = memory
    self.messages = messages
    wires = InterruptWires(lines)
  }

  // MARK: What is plugged in

  /// Whether nothing is in a slot of the root bus, or behind `bridge`.
  public func isFree(_ slot: PCISlot, behind bridge: PCIBridge? = nil) -> Bool {
    topology.withLock { topology in
      let parent = topology.id(of: bridge)
      return (bridge == nil || parent != nil) && !topology.plugged.contains { $0.slot == slot && $0.bridge == parent }
    }
  }

  /// Plugs a function in, whether or not the machine runs. The slot must be free, and the bridge plugged in.
  ///
  /// - Parameters:
  ///   - bypassesIOMMU: the function is in front of no IOMMU, now or later, as an IOMMU itself is (R036).
  ///   - make: makes the function with what it reaches memory and interrupts through.
  public func add<Function: PCIFunction, E: Error>(
    at slot: PCISlot, behind bridge: PCIBridge? = nil, bypassingIOMMU bypassesIOMMU: Bool = false,
    _ make: (BusMaster) throws(E) -> Function
  ) throws(E) -> Function {
    precondition(isFree(slot, behind: bridge), "the slot is taken, or its bridge is not there")
    let (id, parent, path, isBehind, leader) = topology.withLock { topology in
      topology.nextID += 1
      let parent = topology.id(of: bridge)
      let leader = bypassesIOMMU ? nil : topology.conventional(parent)?.shared?.endpoint
      return (topology.nextID, parent, topology.path(slot, parent), topology.iommu != nil && !bypassesIOMMU, leader)
    }
    let requester = RequesterID(bus: 0, device: slot.device, function: slot.function)
    let wires = wires
    let endpoint = DMAEndpoint(memory, requester: requester, isOpen: false)
    endpoint.setBehindIOMMU(isBehind)
    let master = BusMaster(
      endpoint, messages: messages, wire: { wires.set($0, asserted: $1, path: path, by: id) })
    let function = try make(master)
    let sharesNumber = (function as? PCIBridge)?.sharesNumber ?? false
    // Before software can find the function and open its gate.
    leader?.addAlias(endpoint.translatedSpace)
    topology.withLock { topology in
      var new = Plugged(
        id: id, function: function, slot: slot, bridge: parent, endpoint: endpoint, bypassesIOMMU: bypassesIOMMU)
      if sharesNumber { new.shared = Shared(endpoint: EndpointSpace(memory, requester: requester)) }
      let index = topology.plugged.firstIndex { $0.slot > slot } ?? topology.plugged.endIndex
      topology.plugged.insert(new, at: index)
      topology.markMultifunction(slot.device, parent)
    }
    refresh()
    return function
  }

  /// Takes a function out, with everything behind it if it is a bridge, and returns when none of it reaches memory any
  /// more.
  public func remove(_ function: any PCIFunction) {
    changes.withLock { _ in
      let (gone, leaders): ([Plugged], [EndpointSpace?]) = topology.withLock { topology in
        guard let first = topology.plugged.first(where: { $0.function === function }) else { return ([], []) }
        var ids: Set<Int> = [first.id]
        while true {
          let more = topology.plugged.filter { $0.bridge.map(ids.contains) == true && !ids.contains($0.id) }
          if more.isEmpty { break }
          ids.formUnion(more.map(\.id))
        }
        let gone = topology.plugged.filter { ids.contains($0.id) }
        let leaders = gone.map { topology.conventional($0.bridge)?.shared?.endpoint }
        topology.plugged.removeAll { ids.contains($0.id) }
        topology.markMultifunction(first.slot.device, first.bridge)
        return (gone, leaders)
      }
      for (one, leader) in zip(gone, leaders) {
        let endpoint = one.endpoint
        leader?.removeAlias(endpoint.translatedSpace)
        if let shared = one.shared { shared.adopter?.release(shared.endpoint) }
        one.adopter?.release(endpoint.translatedSpace)
        endpoint.block()
        one.function.reset()
        wires.release(one.id)
      }
    }
  }

  /// The unit that decides what functions reach, or nil. It may come after them: it adopts those that are there (R032).
  public var iommu: (any IOMMU)? { topology.withLock { $0.iommu } }

  /// Puts an IOMMU in front of every function that does not bypass it, or takes it away.
  public func setIOMMU(_ iommu: (any IOMMU)?) {
    topology.withLock { $0.iommu = iommu }
    refresh()
  }

  /// The functions that are plugged in and can be addressed now, by their numbers.
  public var functions: [(requester: RequesterID, function: any PCIFunction)] {
    topology.withLock { topology in
      topology.plugged.compactMap { one in topology.requester(of: one).map { ($0, one.function) } }.sorted {
        $0.0 < $1.0
      }
    }
  }

  /// What an IOMMU can tell apart: each number that transactions arrive under now, and the functions behind it. More
  /// than one are behind a bridge to a conventional bus, and in the same domain or in none (R081). Functions that
  /// bypass the IOMMU are left out.
  public var endpoints: [(requester: RequesterID, functions: [any PCIFunction])] {
    topology.withLock { topology in
      var found: [RequesterID: [any PCIFunction]] = [:]
      for one in topology.plugged where !one.bypassesIOMMU {
        if let number = topology.number(of: one) { found[number, default: []].append(one.function) }
      }
      return found.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }
  }

  /// The platform's reset: every function as after power-on.
  public func reset() {
    for one in topology.withLock({ $0.plugged }) { one.function.systemReset() }
    configurationAddress.withLock { $0 = 0 }
    refresh()
  }
}

extension PCIBus.Topology {
  func id(of bridge: PCIBridge?) -> Int? {
    guard let bridge else { return nil }
    return plugged.first { $0.function === bridge }?.id
  }

  func with(id: Int) -> PCIBus.Plugged? { plugged.first { $0.id == id } }

  /// Device numbers from a slot up to the root bus.
  func path(_ slot: PCISlot, _ bridge: Int?) -> [UInt8] {
    var path = [slot.device]
    var up = bridge
    while let id = up, let one = with(id: id) {
      path.append(one.slot.device)
      up = one.bridge
    }
    return path
  }

  /// The number of the bus behind a bridge; nil while the bridge, or one above it, is not programmed to forward to it.
  func bus(behind bridge: Int?) -> UInt8? {
    guard let bridge else { return 0 }
    guard let one = with(id: bridge), let decoding = one.decoding.bridge, decoding.contains(bus: decoding.secondary)
    else { return nil }
    var up = one.bridge
    while let id = up {
      guard let above = with(id: id), above.decoding.bridge?.contains(bus: decoding.secondary) == true else {
        return nil
      }
      up = above.bridge
    }
    return decoding.secondary
  }

  /// A function's number, if it has one that its bridges forward (R031).
  func requester(of one: PCIBus.Plugged) -> RequesterID? {
    bus(behind: one.bridge).map { RequesterID(bus: $0, device: one.slot.device, function: one.slot.function) }
  }

  /// The bridge under whose number the transactions from behind a bridge arrive: of several, the one closest to memory.
  /// nil: each arrives under its own.
  func conventional(_ parent: Int?) -> PCIBus.Plugged? {
    var found: PCIBus.Plugged?
    var up = parent
    while let id = up, let bridge = with(id: id) {
      if bridge.shared != nil { found = bridge }
      up = bridge.bridge
    }
    return found
  }

  /// The number under which what is behind a bridge to a conventional bus arrives.
  func sharedNumber(of bridge: PCIBus.Plugged) -> RequesterID? {
    bus(behind: bridge.id).map { RequesterID(bus: $0, device: 0) }
  }

  /// The number under which a function's transactions arrive, its own or its bridge's.
  func number(of one: PCIBus.Plugged) -> RequesterID? {
    conventional(one.bridge).map { sharedNumber(of: $0) } ?? requester(of: one)
  }

  /// Whether a function's own bus master enable bit, and that of every bridge above it, let it reach memory.
  func isBusMaster(_ one: PCIBus.Plugged) -> Bool {
    var next: PCIBus.Plugged? = one
    while let current = next {
      guard current.decoding.command.contains(.busMaster) else { return false }
      next = current.bridge.flatMap(with)
    }
    return true
  }

  func markMultifunction(_ device: UInt8, _ bridge: Int?) {
    let all = plugged.filter { $0.slot.device == device && $0.bridge == bridge }
    for one in all where one.slot.function == 0 { one.function.configuration.setMultifunction(all.count > 1) }
  }
}
