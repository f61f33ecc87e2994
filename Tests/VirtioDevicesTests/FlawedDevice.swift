import DMA
import Synchronization
import Virtio
import VirtioTestKit

/// A device that answers every request with a pattern of what it read, and has one flaw.
struct FlawedDevice: VirtioDevice {
  enum Flaw: String, CaseIterable, CustomStringConvertible {
    case forgets = "it forgets every tenth chain"
    case firstPieceOnly = "it reads no further than eight bytes into a request"
    case saysTooMuch = "it says it wrote one byte more than it did"
    case saysTooLittle = "it says it wrote nothing"
    case refusesShort = "it ends the queue over a short request"
    case refusesLong = "it ends the queue over a long request"
    case refusesOneSided = "it ends the queue over a request with one side only"
    case losesFaults = "it keeps a chain that faulted"
    case answersLate = "it completes after a reset what it had before"
    case offersPlatform = "it offers bit 33"
    case offersReserved = "it offers a reserved bit"
    case ungrouped = "a queue of it is in no group"
    case readsPastEnd = "its configuration space does not end"
    case readsShifted = "its configuration space is another one from an odd offset"
    case writesReadOnly = "its configuration space takes writes everywhere"
    var description: String { rawValue }

    /// The check that has to find it; nil for what a device says of itself.
    var check: DeviceConformance.Check? {
      switch self {
      case .forgets, .saysTooMuch, .saysTooLittle: .whole
      case .firstPieceOnly: .pieces
      case .refusesShort: .short
      case .refusesLong: .long
      case .refusesOneSided: .oneSided
      case .losesFaults: .fault
      case .answersLate: .reset
      case .offersPlatform, .offersReserved, .ungrouped, .readsPastEnd, .readsShifted, .writesReadOnly: nil
      }
    }
  }

  private final class Memory: Sendable {
    let configuration = Mutex((0..<24).map { UInt8($0 + 1) })
  }
  let flaw: Flaw?
  private let memory = Memory()

  init(_ flaw: Flaw?) { self.flaw = flaw }

  var id: DeviceID { .entropy }
  var features: Features {
    switch flaw {
    case .offersPlatform: [.ring, .accessPlatform]
    case .offersReserved: [.ring, Features(bit: 45)]
    default: .ring
    }
  }
  var maxQueueSizes: [UInt16] { [256, 256] }
  var queueGroups: [Range<Int>] { flaw == .ungrouped ? [0..<1] : [0..<1, 1..<2] }
  var configurationSize: Int { 24 }

  func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    for i in bytes.indices {
      let (place, overflow) = offset.addingReportingOverflow(i)
      if overflow || place >= 24 {
        bytes[i] = flaw == .readsPastEnd ? 0xff : 0
      } else {
        let shift = flaw == .readsShifted && offset % 2 == 1 && place > 0 ? 1 : 0
        bytes[i] = memory.configuration.withLock { $0[place - shift] }
      }
    }
  }

  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    for i in bytes.indices {
      let (place, overflow) = offset.addingReportingOverflow(i)
      if overflow || place >= 24 { return }
      let byte = bytes[i]
      if place < 4 || flaw == .writesReadOnly { memory.configuration.withLock { $0[place] = byte } }
    }
  }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    FlawedHandler(flaw)
  }

  /// The battery, for this device.
  static func conformance(_ flaw: Flaw?) -> DeviceConformance {
    let question = pattern(40, seed: 6)
    return DeviceConformance(
      requests: [
        .init(readable: question, writable: 100) { used, bytes in
          used == 100 && bytes == EchoDevice.answer(to: question, count: 100)
        },
        .init(writable: 9) { used, bytes in used == 9 && bytes == EchoDevice.answer(to: [], count: 9) },
      ], writableConfiguration: 0..<4
    ) { FlawedDevice(flaw) }
  }
}

private final class FlawedHandler: QueueHandler {
  private let flaw: FlawedDevice.Flaw?
  private var seen = 0
  /// Chains that are given back in the next round only, for any queue.
  private var kept: SlotTable<DescriptorChain> = SlotTable(capacity: 512)
  private var tags: [Int] = []

  init(_ flaw: FlawedDevice.Flaw?) { self.flaw = flaw }

  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    for tag in tags { if let chain = kept.remove(tag) { queues[index].complete(chain, written: 0) } }
    tags = []
    var inRound = 0
    while let chain = try queues[index].next() {
      seen += 1
      inRound += 1
      let count = chain.readable.byteCount
      let room = chain.writable.byteCount
      if chain.fault != nil {
        if flaw != .losesFaults { queues[index].complete(chain, written: 0) }
      } else if flaw == .refusesShort && count < 40 && room < 9 || flaw == .refusesLong && count + room > 60_000
        || flaw == .refusesOneSided && (count == 4096 || room == 4096)
      {
        throw .chainTooLong
      } else if flaw == .answersLate && inRound > 2 {
        tags.append(kept.insert(chain))
      } else if flaw != .forgets || seen % 10 != 0 {
        answer(chain, &queues[index])
      }
    }
  }

  private func answer(_ chain: consuming DescriptorChain, _ queue: inout Virtqueue) {
    let read = chain.readable.bytes(flaw == .firstPieceOnly ? 8 : .max)
    let room = chain.writable.byteCount
    _ = chain.writable.copy(
      EchoDevice.answer(to: read, count: flaw == .saysTooMuch ? max(room - 1, 0) : room).span, to: 0)
    queue.complete(chain, written: flaw == .saysTooLittle ? 0 : room)
  }
}
