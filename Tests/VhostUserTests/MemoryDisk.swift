import DMA
import Synchronization
import Virtio

/// A virtio-blk device in memory (§5.2): read, write, flush, in the smallest form that a guest's driver accepts.
final class MemoryDisk: VirtioDevice {
  private let bytes: Mutex<[UInt8]>
  private let queues: Int
  private let observer = Mutex<(@Sendable () -> Void)?>(nil)
  private let cacheByte = Mutex<UInt8>(1)

  init(sectors: Int, queues: Int = 1) {
    bytes = Mutex([UInt8](repeating: 0, count: sectors * 512))
    self.queues = queues
  }

  convenience init(bytes: [UInt8], queues: Int = 1) {
    self.init(sectors: bytes.count / 512, queues: queues)
    self.bytes.withLock { $0 = bytes }
  }

  var contents: [UInt8] { bytes.withLock { $0 } }
  func configurationChanged() { observer.withLock { $0 }?() }

  var id: DeviceID { .block }
  /// FLUSH and MQ.
  var features: Features { Features.ring.union([Features(bit: 9), Features(bit: 12)]) }
  var maxQueueSizes: [UInt16] { [UInt16](repeating: 256, count: queues) }
  var configurationSize: Int { 60 }

  private var configuration: [UInt8] {
    var space = [UInt8](repeating: 0, count: 60)
    let sectors = UInt64(bytes.withLock { $0.count } / 512)
    for i in 0..<8 { space[i] = UInt8(truncatingIfNeeded: sectors >> (8 * UInt64(i))) }
    space[32] = cacheByte.withLock { $0 }
    space[34] = UInt8(queues)
    return space
  }

  func readConfiguration(at offset: Int, into out: inout MutableSpan<UInt8>) {
    let space = configuration
    for i in out.indices { out[i] = offset + i < space.count ? space[offset + i] : 0 }
  }

  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    if offset == 32, bytes.count == 1 { cacheByte.withLock { $0 = bytes[0] } }
  }

  func observeConfiguration(_ changed: @escaping @Sendable () -> Void) { observer.withLock { $0 = changed } }
  func saveState() -> [UInt8] { [cacheByte.withLock { $0 }] }
  func restoreState(_ bytes: [UInt8]) throws(DeviceError) {
    guard bytes.count == 1, bytes[0] <= 1 else { throw DeviceError("one byte, 0 or 1, is expected") }
    cacheByte.withLock { $0 = bytes[0] }
  }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    Handler(self)
  }

  private final class Handler: QueueHandler {
    let disk: MemoryDisk
    init(_ disk: MemoryDisk) { self.disk = disk }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while let chain = try queues[index].next() {
        let written: Int
        if chain.fault == nil {
          written = disk.serve(chain.readable, chain.writable)
        } else {
          written = chain.writeStatus(1) ? 1 : 0
        }
        queues[index].complete(chain, written: written)
      }
    }
  }

  private func serve(_ readable: borrowing BufferSegments, _ writable: borrowing BufferSegments) -> Int {
    guard let type = readable.read(UInt32.self, at: 0), let sector = readable.read(UInt64.self, at: 8) else { return 0 }
    let status = writable.byteCount - 1
    guard status >= 0 else { return 0 }
    let isDone = bytes.withLock { disk -> Bool in
      let (start, overflow) = Int(truncatingIfNeeded: sector).multipliedReportingOverflow(by: 512)
      guard !overflow, start >= 0, start <= disk.count else { return false }
      switch type {
      case 0:
        guard status <= disk.count - start else { return false }
        return writable.copy(disk.span.extracting(start..<start + status), to: 0) == status
      case 1:
        let count = readable.byteCount - 16
        guard count >= 0, count <= disk.count - start else { return false }
        var part = disk.mutableSpan
        var piece = part.extracting(start..<start + count)
        return readable.copy(from: 16, into: &piece) == count
      case 4: return true
      default: return false
      }
    }
    _ = writable.write(UInt8(isDone ? 0 : 1), at: status)
    return isDone && type == 0 ? status + 1 : 1
  }
}
