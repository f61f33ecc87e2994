/// What an input makes the front-end do.
///
/// An even first byte: the rest is the stream, byte for byte. An odd one: steps of five bytes and a payload each, so
/// that an input gets behind the header without having to guess its size.
enum MessageScript {
  /// What travels beside a message.
  enum Passed: UInt8 {
    case nothing, event, memory, channel
  }

  enum Step {
    /// A message, header and payload.
    case message(request: UInt8, bytes: [UInt8], passed: Passed, count: Int)
    /// The driver writes to its memory.
    case poke(offset: Int, bytes: [UInt8])
    /// The driver kicks every virtqueue that has the event.
    case kick
    /// Bytes on the back-end's channel.
    case answer([UInt8])
    /// What there is to be loaded as the device's state from now on.
    case state([UInt8])
    /// The memory's file gets this many bytes.
    case resize(UInt64)
  }

  /// What a step's first byte means when it is no request.
  private enum Code {
    static let poke: UInt8 = 0xfe, kick: UInt8 = 0xfd, answer: UInt8 = 0xfc, state: UInt8 = 0xfb, resize: UInt8 = 0xfa
  }

  /// Steps beyond these would only repeat; they cost time.
  private static let most = 256

  /// The steps: first byte, flags, descriptors (kind in the low two bits, how many in the next four), payload size (two
  /// bytes, little-endian), payload. A poke's payload starts with two bytes: the offset, in units of 16 bytes.
  static func steps(_ input: ArraySlice<UInt8>) -> [Step] {
    var rest = input
    var steps: [Step] = []
    while rest.count >= 5, steps.count < most {
      let head = Array(rest.prefix(5))
      rest = rest.dropFirst(5)
      let payload = Array(rest.prefix(Int(head[3]) | Int(head[4]) << 8))
      rest = rest.dropFirst(payload.count)
      switch head[0] {
      case Code.poke where payload.count >= 2:
        steps.append(.poke(offset: (Int(payload[0]) | Int(payload[1]) << 8) << 4, bytes: Array(payload.dropFirst(2))))
      case Code.kick: steps.append(.kick)
      case Code.answer: steps.append(.answer(payload))
      case Code.state: steps.append(.state(payload))
      case Code.resize where payload.count == 1: steps.append(.resize(UInt64(payload[0]) << 12))
      default:
        let passed = Passed(rawValue: head[2] & 3) ?? .nothing
        let bytes = word(UInt32(head[0])) + word(UInt32(head[1])) + word(UInt32(payload.count)) + payload
        steps.append(.message(request: head[0], bytes: bytes, passed: passed, count: Int(head[2] >> 2 & 15)))
      }
    }
    return steps
  }

  /// A number in little-endian order, which is that of the machines this is run on.
  static func word(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }
}
