/// What an input makes the client do.
///
/// The first byte says how the session starts. Then comes the stream, byte for byte, or steps of five bytes and a
/// payload each, so that an input gets behind the header without having to guess its size.
enum ClientScript {
  /// How a session starts.
  struct Start: OptionSet {
    let rawValue: UInt8
    /// Steps follow, and not bytes.
    static let steps = Start(rawValue: 1)
    /// Both sides have agreed on a version.
    static let agreed = Start(rawValue: 2)
    /// All memory is mapped from address 0 on; without a descriptor where ``grants`` is set.
    static let mapped = Start(rawValue: 4)
    /// The controller is enabled, with its admin queues in the first pages.
    static let enabled = Start(rawValue: 8)
    /// What the server asks for is granted; else it is refused.
    static let grants = Start(rawValue: 16)
  }

  /// What travels beside a message.
  enum Passed: UInt8 {
    case nothing, event, memory, channel
  }

  enum Step {
    /// A command, as the number of the message is not the input's.
    case command(UInt16, flags: UInt32, payload: [UInt8], passed: Passed, count: Int)
    /// The guest writes to its memory.
    case poke(offset: Int, bytes: [UInt8])
    /// The memory's file gets this many bytes.
    case resize(UInt64)
  }

  /// What a step's first byte means when it is no command.
  private enum Code {
    static let poke: UInt8 = 0xfe, resize: UInt8 = 0xfd, region: UInt8 = 0xfc
  }

  /// Steps beyond these would only repeat; they cost time.
  private static let most = 256

  /// The steps: first byte, flags, descriptors (kind in the low two bits, how many in the next four), payload size (two
  /// bytes, little-endian), payload. A poke's payload starts with two bytes: the offset, in units of 16 bytes. A step of
  /// a region is a REGION_WRITE: region, offset in three bytes, and the data.
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
      case Code.resize where payload.count == 1: steps.append(.resize(UInt64(payload[0]) << 12))
      case Code.region where payload.count >= 4:
        let offset = UInt64(payload[1]) | UInt64(payload[2]) << 8 | UInt64(payload[3]) << 16
        steps.append(write(UInt32(payload[0]), offset, Array(payload.dropFirst(4)), flags: UInt32(head[1])))
      default:
        steps.append(
          .command(
            UInt16(head[0]), flags: UInt32(head[1]), payload: payload,
            passed: Passed(rawValue: head[2] & 3) ?? .nothing, count: Int(head[2] >> 2 & 15)))
      }
    }
    return steps
  }

  /// The commands of a client that begins in the usual way.
  static func opening(_ start: Start) -> [Step] {
    var steps: [Step] = []
    func command(_ number: UInt16, _ payload: [UInt8], _ passed: Passed = .nothing) {
      steps.append(.command(number, flags: 0, payload: payload, passed: passed, count: passed == .nothing ? 0 : 1))
    }
    if start.contains(.agreed) { command(1, bytes(0, 4) + Array("{}".utf8) + [0]) }
    if start.contains(.mapped) {
      command(
        2, bytes(32, 4) + bytes(3, 4) + bytes(0, 8) + bytes(0, 8) + bytes(1 << 20, 8),
        start.contains(.grants) ? .nothing : .memory)
    }
    if start.contains(.enabled) {
      // Bus master; AQA, ASQ, ACQ, CC.
      steps.append(write(7, 4, bytes(6, 2)))
      steps.append(write(0, 0x24, bytes(0x000f_000f, 4)))
      steps.append(write(0, 0x28, bytes(0x1000, 8)))
      steps.append(write(0, 0x30, bytes(0x2000, 8)))
      steps.append(write(0, 0x14, bytes(0x0046_0001, 4)))
    }
    return steps
  }

  private static func write(_ region: UInt32, _ offset: UInt64, _ data: [UInt8], flags: UInt32 = 0) -> Step {
    .command(
      10, flags: flags, payload: bytes(offset, 8) + bytes(UInt64(region), 4) + bytes(UInt64(data.count), 4) + data,
      passed: .nothing, count: 0)
  }

  /// A number in little-endian order, which is that of the machines this is run on.
  static func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
  }
}
