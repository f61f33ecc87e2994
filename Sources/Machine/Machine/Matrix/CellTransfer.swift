import DMA
import DeviceCatalog
import VirtioDrivers

/// What a cell that moves data is tried on.
struct CellRig {
  let device: PluggedDevice
  let driver: GuestDriver
}

/// One request of a cell, one way, and what is wrong with what came of it.
struct CellTransfer {
  /// What memory around the buffer holds, and the buffer before the device writes it.
  private static let guardByte: UInt8 = 0xEE
  private let decision: Decision
  private let way: CellOutcome.Direction
  private let mayWork: Bool
  private let buffer: ShapedBuffer
  private let rig: CellRig
  private let pattern: [UInt8]

  init(_ cell: Cell, _ way: CellOutcome.Direction, _ buffer: ShapedBuffer, on rig: CellRig) {
    decision = cell.decision
    self.way = way
    self.buffer = buffer
    self.rig = rig
    mayWork =
      switch cell.expected {
      case .data: true
      case .oneWay(_, let allowed): allowed == way
      default: false
      }
    let start = way == .toMemory ? 3 : 1
    pattern = (0..<buffer.byteCount).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ start) }
  }

  private var memory: GuestMemory { rig.device.machine.guest.memory }
  private var empty: [UInt8] { [UInt8](repeating: 0, count: buffer.byteCount) }

  /// Faults that were recorded on the path of the table.
  private var faults: UInt64 {
    let counts = rig.device.counts
    return decision.path == .platform ? counts.platform.faults : counts.physical.faults
  }

  func verdict(story: inout [String]) -> CellResult.Verdict {
    prepare()
    let memoryBefore = buffer.bytes(in: memory)
    let faultsBefore = faults
    let why: String?
    do throws(MachineError) {
      try rig.driver.request(way, buffer)
      if mayWork { story.append("\(way.rawValue): \(buffer.byteCount) bytes arrived") }
      why = mayWork ? wrongOfSuccess() : "succeeded though it must not"
    } catch {
      story.append("\(way.rawValue): \(error)")
      why = mayWork ? "\(error)" : wrongOfRefusal(error, memoryBefore: memoryBefore, faultsBefore: faultsBefore)
    }
    return why.map { .failed("\(way.rawValue): \($0)") } ?? .passed
  }

  /// Puts the bytes where they are to be taken from, and others where they are to arrive.
  private func prepare() {
    buffer.fill(Self.guardByte, in: memory)
    switch way {
    case .toMemory: rig.device.setContents(pattern)
    case .fromMemory:
      rig.device.setContents(empty)
      buffer.put(pattern, in: memory)
    }
  }

  private func wrongOfRefusal(_ error: MachineError, memoryBefore: [UInt8], faultsBefore: UInt64) -> String? {
    if case .driver(.timeout) = error { return "no answer" }
    let isUntouched =
      switch way {
      case .toMemory: buffer.bytes(in: memory) == memoryBefore
      case .fromMemory: rig.device.contents(buffer.byteCount) == empty
      }
    guard isUntouched else { return "bytes moved in spite of the fault" }
    return faults > faultsBefore ? nil : "refused, but no fault was recorded on the \(decision.path.rawValue) path"
  }

  private func wrongOfSuccess() -> String? {
    guard way == .toMemory else {
      return rig.device.contents(buffer.byteCount) == pattern ? nil : "the bytes on the disk are others"
    }
    guard buffer.isGuarded(by: Self.guardByte, in: memory) else { return "bytes beside the buffer changed" }
    let after = buffer.bytes(in: memory)
    guard !decision.device.isStorage else { return after == pattern ? nil : "the bytes in memory are others" }
    // Bytes that nothing stored cannot be foretold, but 64 equal ones in a row are those that were there.
    let isStale = stride(from: 0, to: after.count, by: 64).contains {
      after[$0..<min($0 + 64, after.count)].allSatisfy { $0 == Self.guardByte }
    }
    return isStale ? "a part was not filled" : nil
  }
}

extension GuestDriver {
  /// One request for a whole buffer.
  func request(_ way: CellOutcome.Direction, _ buffer: ShapedBuffer) throws(MachineError) {
    switch way {
    case .toMemory:
      let count = try receive(from: PluggedDevice.place, into: buffer.segments)
      guard count == buffer.byteCount else {
        throw .driver(.incomplete(written: UInt32(count), needed: UInt64(buffer.byteCount)))
      }
    case .fromMemory: try send(to: PluggedDevice.place, from: buffer.segments)
    }
  }
}

extension PluggedDevice {
  /// Where requests of cells go on the disk: sector 8.
  fileprivate static let place: UInt64 = 8 * 512

  fileprivate func setContents(_ bytes: [UInt8]) { _ = contents?.copy(bytes.span, to: Int(Self.place)) }

  fileprivate func contents(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = contents?.copy(from: Int(Self.place), into: &span)
    return bytes
  }
}
