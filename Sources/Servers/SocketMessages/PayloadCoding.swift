/// The byte order of the numbers in messages between processes of one machine.
package let machineIsBigEndian = UInt16(bigEndian: 1) == 1

/// Reads a message's payload front to back, in the machine's byte order, and notices when it is too short or too long.
///
/// vhost-user and vfio-user talk to another process of the same machine, so their numbers have the machine's byte order;
/// virtio's own structures are little-endian and are read with `WireReader`.
package struct PayloadReader {
  private let bytes: [UInt8]
  private let message: String
  private var offset = 0

  package init(_ bytes: [UInt8], of message: String) {
    self.bytes = bytes
    self.message = message
  }

  package var remaining: Int { bytes.count - offset }

  package mutating func take<T: FixedWidthInteger>(_: T.Type) throws(ProtocolError) -> T {
    T(truncatingIfNeeded: try number(of: T.bitWidth / 8))
  }

  /// The next bytes as a number. For other modules generic code asks the type for each of its steps, so it has few.
  private mutating func number(of count: Int) throws(ProtocolError) -> UInt64 {
    guard remaining >= count else { throw ProtocolError(message, "a payload of \(bytes.count) bytes is too short") }
    var value: UInt64 = 0
    for index in 0..<count {
      let place = machineIsBigEndian ? count - 1 - index : index
      value |= UInt64(bytes[offset + index]) << UInt64(8 * place)
    }
    offset += count
    return value
  }

  package mutating func take(count: Int) throws(ProtocolError) -> [UInt8] {
    guard count >= 0, remaining >= count else {
      throw ProtocolError(message, "a payload of \(bytes.count) bytes is too short")
    }
    defer { offset += count }
    return Array(bytes[offset..<offset + count])
  }

  package func finish() throws(ProtocolError) {
    guard remaining == 0 else { throw ProtocolError(message, "\(remaining) bytes follow the payload") }
  }

  /// C compilers pad a structure to its alignment, and peers send the padding or do not: both are accepted.
  package mutating func finish(allowingPadding limit: Int) throws(ProtocolError) {
    guard remaining <= limit else { throw ProtocolError(message, "\(remaining) bytes follow the payload") }
  }
}

/// Writes a payload, in the machine's byte order.
package struct PayloadWriter {
  package private(set) var bytes: [UInt8] = []

  package init() {}

  package mutating func put<T: FixedWidthInteger>(_ value: T) {
    put(UInt64(truncatingIfNeeded: value), count: T.bitWidth / 8)
  }

  private mutating func put(_ value: UInt64, count: Int) {
    for index in 0..<count {
      let place = machineIsBigEndian ? count - 1 - index : index
      bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * place)))
    }
  }

  package mutating func put(_ more: [UInt8]) { bytes += more }
  package mutating func pad(_ count: Int) { bytes += [UInt8](repeating: 0, count: count) }
}

/// A payload with a fixed layout.
package protocol Payload: Hashable, Sendable {
  init(from reader: inout PayloadReader) throws(ProtocolError)
  func write(to writer: inout PayloadWriter)
}

extension Payload {
  package init(decoding bytes: [UInt8], of message: String, padding: Int = 0) throws(ProtocolError) {
    var reader = PayloadReader(bytes, of: message)
    self = try Self(from: &reader)
    try reader.finish(allowingPadding: padding)
  }

  package var encoded: [UInt8] {
    var writer = PayloadWriter()
    write(to: &writer)
    return writer.bytes
  }
}

extension UInt64 {
  package init(payload: [UInt8], of message: String) throws(ProtocolError) {
    var reader = PayloadReader(payload, of: message)
    self = try reader.take(UInt64.self)
    try reader.finish()
  }

  package var payload: [UInt8] {
    var writer = PayloadWriter()
    writer.put(self)
    return writer.bytes
  }
}
