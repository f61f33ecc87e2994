public import DMA
internal import Synchronization
public import VhostUser

/// A mapping of an IOMMU as its guest would have programmed it: device addresses, guest memory, and what may be done.
public struct FrontendMapping: Hashable, Sendable {
  /// The first device address.
  public var address: DMAAddress
  /// Bytes, at least 1.
  public var byteCount: UInt64
  /// The guest memory behind it.
  public var guestAddress: GuestAddress
  /// What the device may do.
  public var permission: IOTLBMessage.Permission

  /// `byteCount` bytes at `address`, which lead to `guestAddress`.
  public init(
    address: DMAAddress, byteCount: UInt64, guestAddress: GuestAddress,
    permission: IOTLBMessage.Permission = [.read, .write]
  ) {
    self.address = address
    self.byteCount = byteCount
    self.guestAddress = guestAddress
    self.permission = permission
  }

  var last: UInt64 { address.rawValue &+ (byteCount &- 1) }
}

/// The IOMMU of a front-end without a machine: which device addresses lead where. Any thread may use it.
public final class FrontendMappings: Sendable {
  // By device address, without overlaps.
  private let state = Mutex<[FrontendMapping]>([])

  /// Nothing is mapped.
  public init() {}

  /// The mappings in force, by device address.
  public var all: [FrontendMapping] { state.withLock { $0 } }

  /// Adds a mapping. False, and nothing changed, if it is empty, passes the end of the address space or overlaps
  /// another.
  public func insert(_ mapping: FrontendMapping) -> Bool {
    guard mapping.byteCount > 0, mapping.address.rawValue <= .max - (mapping.byteCount - 1) else { return false }
    return state.withLock { mappings in
      let place = Self.place(mapping.address.rawValue, in: mappings)
      if place > 0, mappings[place - 1].last >= mapping.address.rawValue { return false }
      if place < mappings.count, mappings[place].address.rawValue <= mapping.last { return false }
      mappings.insert(mapping, at: place)
      return true
    }
  }

  /// Removes every mapping that lies in the bytes `first` through `last`, whole; one that is only partly inside is
  /// split.
  public func remove(from first: DMAAddress, through last: DMAAddress) {
    guard first <= last else { return }
    state.withLock { mappings in
      var kept: [FrontendMapping] = []
      for mapping in mappings {
        if mapping.last < first.rawValue || mapping.address > last {
          kept.append(mapping)
          continue
        }
        if mapping.address < first {
          var head = mapping
          head.byteCount = first.rawValue - mapping.address.rawValue
          kept.append(head)
        }
        if mapping.last > last.rawValue {
          let skipped = last.rawValue + 1 - mapping.address.rawValue
          kept.append(
            FrontendMapping(
              address: DMAAddress(last.rawValue + 1), byteCount: mapping.byteCount - skipped,
              guestAddress: GuestAddress(mapping.guestAddress.rawValue &+ skipped), permission: mapping.permission))
        }
      }
      mappings = kept
    }
  }

  /// The mapping around a device address, or nil.
  public func mapping(at address: DMAAddress) -> FrontendMapping? {
    state.withLock { mappings in
      // The place after the last mapping that starts at or below the address.
      let place = address.rawValue == .max ? mappings.count : Self.place(address.rawValue + 1, in: mappings)
      guard place > 0, mappings[place - 1].last >= address.rawValue else { return nil }
      return mappings[place - 1]
    }
  }

  /// How many mappings start below `address`.
  private static func place(_ address: UInt64, in mappings: [FrontendMapping]) -> Int {
    var low = 0
    var high = mappings.count
    while low < high {
      let middle = (low + high) / 2
      if mappings[middle].address.rawValue < address { low = middle + 1 } else { high = middle }
    }
    return low
  }
}

/// What a front-end does about a miss: the truth, or something a back-end has to survive.
public enum MissAnswer: Hashable, Sendable {
  /// An UPDATE if the mappings allow the access, a failure otherwise.
  case fromMappings
  /// A failure, in spite of the mappings.
  case refuse
  /// No answer, ever: what QEMU does about a failed translation without a request for an acknowledgement.
  case silence
  /// Like `fromMappings`, this much later.
  case after(Duration)
  /// Like `fromMappings`, when ``Frontend/releaseHeldMisses()`` is called.
  case hold
  /// Like `fromMappings`, but the UPDATE says that both reading and writing are allowed, even if the mapping allows
  /// less: QEMU's do.
  case generous
  /// Like `fromMappings`, but the UPDATE comes twice.
  case twice
  /// Success without any UPDATE.
  case emptySuccess
  /// These messages instead, then success.
  case messages([IOTLBMessage])
}

/// How a front-end's translations went, since it was made.
public struct FrontendCounts: Hashable, Sendable {
  /// Misses that came.
  public var misses: UInt64 = 0
  /// Misses of these that asked for an acknowledgement.
  public var acknowledgedMisses: UInt64 = 0
  /// Misses answered with a failure, because nothing allows the access or because the policy said so.
  public var refusals: UInt64 = 0
  /// UPDATEs sent.
  public var updates: UInt64 = 0
  /// UPDATEs that the back-end refused.
  public var refusedUpdates: UInt64 = 0
  /// INVALIDATEs sent.
  public var invalidations: UInt64 = 0
  /// ACCESS_FAILs that came.
  public var accessFailures: UInt64 = 0
  /// UPDATEs and INVALIDATEs that came, which only a front-end may send (R124).
  public var strays: UInt64 = 0
  /// Configuration changes announced.
  public var configurationChanges: UInt64 = 0
  /// The device addresses of the first misses (1024 at most), for tests of what is asked and how often.
  public var missed: [IOTLBMessage] = []
  /// The first accesses that the back-end said had failed (1024 at most).
  public var failed: [IOTLBMessage] = []

  /// Nothing yet.
  public init() {}
}
