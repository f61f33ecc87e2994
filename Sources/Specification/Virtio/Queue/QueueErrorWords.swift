internal import DMA

extension QueueError: CustomStringConvertible {
  /// The broken rule as half a sentence, for a log.
  public var description: String {
    switch self {
    case .ring(let fault): "the ring cannot be reached: \(fault)"
    case .size(let size): "its ring cannot have \(size) descriptors"
    case .misaligned(let address): "an area of its ring, at 0x\(String(address.rawValue, radix: 16)), is not aligned"
    case .availableIndex(let index, let expected):
      "the available index is \(index), further ahead of \(expected) than the ring is long"
    case .tooManyAvailable(let count): "\(count) descriptors are available, more than the ring has besides those in use"
    case .descriptorIndex(let index): "there is no descriptor \(index)"
    case .chainTooLong: "a chain has more descriptors than it may, or goes round in a circle"
    case .chainTooLarge: "a chain has more than 4 GiB"
    case .readableAfterWritable: "a chain has a device-readable descriptor after a device-writable one"
    case .indirectTable:
      "an indirect table is empty, torn, too long, nested, not the end of its chain, or not negotiated"
    case .bufferID(let id): "there is no buffer \(id)"
    case .device(let reason): reason
    }
  }
}
