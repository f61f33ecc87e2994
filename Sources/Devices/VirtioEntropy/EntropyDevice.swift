internal import DMA
internal import HostIO
public import Virtio

/// virtio-rng: random bytes from this host's kernel (§5.4).
public struct EntropyDevice: OptionlessDevice {
  public static var probe: DeviceProbe { .entropy }
  public static var summary: String { "the host kernel's random numbers" }

  /// Most bytes one request gets, however large its buffer: the driver asks again (§5.4.6.2 allows less than the whole
  /// buffer).
  public static var requestLimit: Int { 65_536 }

  public init() {}

  public var id: DeviceID { .entropy }
  public var features: Features { .ring }
  /// More than any driver needs; but QEMU 10.0.13 has drivers use 1024 descriptors on every device, even if the device
  /// asks for fewer.
  public var maxQueueSizes: [UInt16] { [1024] }
  public var hasSingleBufferRequests: Bool { true }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    EntropyHandler()
  }
}

final class EntropyHandler: QueueHandler {
  func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
    while let chain = try queues[index].next() {
      // A chain whose memory cannot be reached has none, and ends with 0 bytes.
      let written = Self.fill(chain.writable)
      queues[index].complete(chain, written: written)
      queues[index].lookAtClock()
    }
  }

  /// Random bytes go into memory of ours first: the kernel's copy then cannot meet a driver that unmaps its own.
  private static func fill(_ buffer: borrowing BufferSegments) -> Int {
    var block = InlineArray<4096, UInt8>(repeating: 0)
    let wanted = min(buffer.byteCount, EntropyDevice.requestLimit)
    var done = 0
    while done < wanted {
      let count = min(wanted - done, block.count)
      do throws(HostError) {
        var bytes = block.mutableSpan
        try fillWithRandomness(&bytes)
      } catch {
        return done
      }
      done += buffer.copy(block.span.extracting(..<count), to: done)
    }
    return done
  }
}
