import DMA
import Synchronization
import Testing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// The front-end that is asked for translations, which records the questions.
final class Asked: Sendable {
  typealias Open = (message: IOTLBMessage, question: PendingMisses.Question)
  private let state = Mutex<(messages: [IOTLBMessage], open: [Open], isThere: Bool)>(([], [], true))
  func take(_ message: IOTLBMessage, _ question: PendingMisses.Question?) -> Bool {
    state.withLock { state in
      guard state.isThere else { return false }
      state.messages.append(message)
      if let question { state.open.append((message, question)) }
      return true
    }
  }
  /// The questions since the last time.
  func take() -> [Open] {
    state.withLock { state in
      defer { (state.messages, state.open) = ([], []) }
      return state.open
    }
  }
  func setThere(_ isThere: Bool) { state.withLock { $0.isThere = isThere } }
  var messages: [IOTLBMessage] { state.withLock { $0.messages } }
  var questions: [PendingMisses.Question] { state.withLock { $0.open.map(\.question) } }
  func forget() { _ = take() }
}

final class RungBell: TranslationWaiter {
  private let count = Atomic<Int>(0)
  func wake() { count.add(1, ordering: .relaxed) }
  var rings: Int { count.load(ordering: .relaxed) }
  var isRung: Bool { rings > 0 }
  func reset() { count.store(0, ordering: .relaxed) }
}

extension MemoryTable {
  /// Adds a region of new memory at a guest address, which the front-end has at `frontend`.
  func add(_ guest: UInt64, frontend: UInt64, byteCount: UInt64) throws {
    try add(
      RegionDescription(guestAddress: guest, size: byteCount, frontendAddress: frontend, offset: 0),
      HostMapping(anonymous: Int(byteCount)))
  }
}

/// A space over one region whose front-end addresses are far from its guest addresses.
struct IOTLBRig {
  static let frontend: UInt64 = 0x7e00_0000_0000
  static let regionBytes: UInt64 = 1 << 20
  let table = MemoryTable()
  var memory: GuestMemory { table.memory }
  let asked = Asked()
  let space: IOTLBSpace

  init(maxNodes: Int = 1 << 15) throws {
    try table.add(0, frontend: Self.frontend, byteCount: Self.regionBytes)
    let asked = asked
    space = IOTLBSpace(table, maxNodes: maxNodes, ask: { asked.take($0, $1) })
    // Each page of memory says which it is.
    for page in 0..<Self.regionBytes / 4096 { memory.write(UInt16(page).bytes, at: GuestAddress(page * 4096)) }
  }

  func update(
    _ address: UInt64, page: UInt64, pages: UInt64 = 1, _ permission: IOTLBMessage.Permission = [.read, .write]
  ) -> IOTLBMessage {
    IOTLBMessage(
      kind: .update, address: address, size: pages * 4096, frontendAddress: Self.frontend + page * 4096,
      permission: permission)
  }

  func invalidate(_ address: UInt64, _ size: UInt64) throws {
    try space.apply(
      IOTLBMessage(
        kind: .invalidate, address: address, size: size, frontendAddress: 0xdead_beef, permission: .init(rawValue: 178))
    )
  }

  func outcome(_ address: UInt64, _ access: DMAAccess = .read, _ bell: RungBell? = nil) -> DMAInterruption? {
    do throws(DMAInterruption) {
      _ = try space.translate(DMAAddress(address), for: access, waking: bell)
      return nil
    } catch {
      return error
    }
  }

  /// Which page of memory an address leads to; nil if it has to be asked for or faults.
  func page(_ address: UInt64, _ access: DMAAccess = .read) -> UInt16? {
    var cache = IOTLB(space)
    _ = cache.beginRound()
    defer { cache.endRound() }
    do throws(DMAInterruption) {
      return try cache.ring(DMAAddress(address), count: 2, for: access).load16(at: 0)
    } catch {
      return nil
    }
  }

  func fault(_ address: UInt64, _ access: DMAAccess, _ reason: DMAFault.Reason) -> DMAInterruption {
    .fault(DMAFault(address: DMAAddress(address), access: access, reason: reason))
  }

  /// What the table allows at an address, without asking for it.
  func granted(_ address: UInt64) -> DMAPermissions { space.table?.run(at: DMAAddress(address))?.permissions ?? [] }
}
