public import IOMMUInterface
import Synchronization

/// A function's MSI-X table and pending bits (PCI local bus specification 3.0, 6.8.2).
///
/// A vector that is signalled while it, or the whole function, is masked stays pending and is delivered when both masks
/// are gone; several signals are one. Any thread may use it.
public final class MSIX: Sendable {
  /// The most a table may have.
  public static var maxVectors: Int { 2048 }
  /// Bytes of a table entry.
  public static var entryBytes: Int { 16 }

  private struct Entry {
    /// Address (low, high), data, vector control.
    var words: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 1)
    var isPending = false

    subscript(_ i: Int) -> UInt32 {
      get { i == 0 ? words.0 : i == 1 ? words.1 : i == 2 ? words.2 : words.3 }
      set {
        switch i {
        case 0: words.0 = newValue & ~3
        case 1: words.1 = newValue
        case 2: words.2 = newValue
        default: words.3 = newValue & 1
        }
      }
    }
    var message: InterruptMessage { InterruptMessage(address: UInt64(words.1) << 32 | UInt64(words.0), data: words.2) }
  }
  private struct State {
    var entries: [Entry]
    var isEnabled = false
    var isMasked = false
  }
  private let state: Mutex<State>
  private let send: @Sendable (InterruptMessage) -> Void
  /// Vectors in the table.
  public let count: Int

  /// - Parameters:
  ///   - count: 1...2048.
  ///   - send: writes a message; called under a lock of the table.
  public init(count: Int, send: @escaping @Sendable (InterruptMessage) -> Void) {
    precondition((1...Self.maxVectors).contains(count))
    self.count = count
    self.send = send
    state = Mutex(State(entries: Array(repeating: Entry(), count: count)))
  }

  /// A table whose messages `master` writes.
  public convenience init(count: Int, _ master: BusMaster) { self.init(count: count) { master.send($0) } }

  /// Bytes of the table.
  public var tableBytes: Int { Self.entryBytes * count }
  /// Bytes of the pending bit array: whole quadwords.
  public var pendingBytes: Int { (count + 63) / 64 * 8 }

  /// Whether software has enabled MSI-X.
  public var isEnabled: Bool { state.withLock { $0.isEnabled } }

  /// Sends the vector's message, now or when it is unmasked. Nothing happens while MSI-X is not enabled, or without
  /// such a vector.
  public func signal(_ vector: Int) {
    state.withLock { state in
      guard state.isEnabled, state.entries.indices.contains(vector) else { return }
      if state.isMasked || state.entries[vector][3] & 1 != 0 {
        state.entries[vector].isPending = true
      } else {
        send(state.entries[vector].message)
      }
    }
  }

  func setControl(isEnabled: Bool, isMasked: Bool) {
    state.withLock { state in
      state.isEnabled = isEnabled
      state.isMasked = isMasked
      for i in state.entries.indices { flush(i, &state) }
    }
  }

  /// Everything as after power-on: disabled, every vector masked, nothing pending.
  public func reset() {
    state.withLock { state in
      state = State(entries: Array(repeating: Entry(), count: state.entries.count))
    }
  }

  /// Reads from the table. Past its end everything is 0.
  public func readTable(at offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      Self.bytes(at: offset, width: width) { at in
        guard at < UInt64(state.entries.count * Self.entryBytes) else { return 0 }
        return UInt8(truncatingIfNeeded: state.entries[Int(at / 16)][Int(at % 16 / 4)] >> UInt32(8 * (at % 4)))
      }
    }
  }

  /// Writes into the table. Software writes whole dwords (6.8.2); of anything else only whole dwords count.
  public func writeTable(at offset: UInt64, width: Int, _ value: UInt64) {
    guard offset % 4 == 0, width == 4 || width == 8 else { return }
    state.withLock { state in
      for i in 0..<width / 4 {
        let (at, isPastTheEnd) = offset.addingReportingOverflow(UInt64(4 * i))
        guard !isPastTheEnd, at < UInt64(state.entries.count * Self.entryBytes) else { return }
        state.entries[Int(at / 16)][Int(at % 16 / 4)] = UInt32(truncatingIfNeeded: value >> UInt64(32 * i))
        flush(Int(at / 16), &state)
      }
    }
  }

  /// Reads from the pending bit array, which software cannot write. Past its end everything is 0.
  public func readPending(at offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      Self.bytes(at: offset, width: width) { at in
        var byte: UInt8 = 0
        guard at < UInt64(state.entries.count + 7) / 8 else { return 0 }
        for bit in 0..<8 where Int(at) * 8 + bit < state.entries.count {
          if state.entries[Int(at) * 8 + bit].isPending { byte |= 1 << UInt8(bit) }
        }
        return byte
      }
    }
  }

  private func flush(_ vector: Int, _ state: inout State) {
    guard state.isEnabled, !state.isMasked, state.entries[vector].isPending, state.entries[vector][3] & 1 == 0 else {
      return
    }
    state.entries[vector].isPending = false
    send(state.entries[vector].message)
  }

  private static func bytes(at offset: UInt64, width: Int, _ byte: (UInt64) -> UInt8) -> UInt64 {
    var value: UInt64 = 0
    for i in 0..<UInt64(min(max(width, 0), 8)) {
      let (at, isPastTheEnd) = offset.addingReportingOverflow(i)
      if !isPastTheEnd { value |= UInt64(byte(at)) << (8 * i) }
    }
    return value
  }
}
