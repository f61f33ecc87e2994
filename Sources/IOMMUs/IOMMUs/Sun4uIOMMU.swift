public import DMA
public import IOMMUInterface
import Synchronization

/// The IOMMU of a SPARC64 sun4u host bridge (UltraSPARC IIi user's manual, chapter "IOM"): one translation storage
/// buffer in guest memory for everything behind the bridge. Streaming buffers are off.
///
/// What was translated is remembered until the guest writes the page's address to the flush register. Off, addresses
/// are physical.
public final class Sun4uIOMMU: IOMMU {
  /// Its registers, by their offsets.
  public enum Register: Int, Sendable {
    /// Bit 0 turns it on, bit 2 chooses pages of 64 KiB over 8 KiB, bits 18...16 are the size of the buffer: 1024 << n
    /// entries.
    case control = 0
    /// The guest-physical address of the buffer.
    case base = 8
    /// Writing a device address forgets its page.
    case flush = 16
  }
  private struct State {
    var control: UInt64 = 0
    var base: UInt64 = 0
  }
  public let memory: GuestMemory
  private let state = Mutex(State())
  private let endpoints = BridgeEndpoints()

  public init(_ memory: GuestMemory) { self.memory = memory }

  /// Accesses refused, of all endpoints.
  public var faults: UInt64 { endpoints.faults }

  public func adopt(_ endpoint: EndpointSpace) { endpoints.adopt(endpoint, by: self) }

  public func release(_ endpoint: EndpointSpace) { endpoints.release(endpoint) }

  /// What a processor reads from a register.
  public func read(_ register: Register) -> UInt64 {
    state.withLock { state in
      switch register {
      case .control: state.control
      case .base: state.base
      case .flush: 0
      }
    }
  }

  /// What a processor writes. Returns when no device uses a translation that the write removed.
  public func write(_ value: UInt64, to register: Register) {
    let (first, last): (UInt64, UInt64) = state.withLock { state in
      switch register {
      case .control: state.control = value & 0x7_0005
      case .base: state.base = value & ~0x1FFF
      case .flush:
        let page = Window(state.control).pageSize
        return (value & ~(page - 1), value | (page - 1))
      }
      return (0, .max)
    }
    endpoints.invalidate(from: first, through: last)
  }

  /// What the control register says of the device addresses that are translated: the highest ones below 4 GiB.
  private struct Window {
    var pageSize: UInt64
    var entries: UInt64
    init(_ control: UInt64) {
      pageSize = control & 4 != 0 ? 65536 : 8192
      entries = 1024 << (control >> 16 & 7)
    }
    /// The index of an address in the buffer, or nil outside the window.
    func index(of address: UInt64) -> UInt64? {
      let bytes = min(entries * pageSize, 1 << 32)
      guard address >> 32 == 0, address >= 1 << 32 - bytes else { return nil }
      return (address - (1 << 32 - bytes)) / pageSize
    }
  }
}

extension Sun4uIOMMU: AddressTranslation {
  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    let (control, base) = state.withLock { ($0.control, $0.base) }
    guard control & 1 != 0 else { return .identity }
    let window = Window(control)
    guard let index = window.index(of: address.rawValue), let word = memory.tableWord(at: base &+ index * 8) else {
      throw DMAFault(address: address, access: access, reason: .unmapped)
    }
    // Entries are big-endian, as the processor is. Bit 63: there is one. Bit 1: devices may write.
    let entry = UInt64(bigEndian: word)
    guard entry >> 63 == 1 else { throw DMAFault(address: address, access: access, reason: .unmapped) }
    let permissions: DMAPermissions = entry & 2 != 0 ? .readWrite : .read
    guard permissions.allows(access) else { throw DMAFault(address: address, access: access, reason: .permission) }
    return GuestRun(
      page: window.pageSize, around: address.rawValue, at: entry & 0x7FF_FFFF_E000, permissions: permissions)
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) { endpoints.countFault() }
}
