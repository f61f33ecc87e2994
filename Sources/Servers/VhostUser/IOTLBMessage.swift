public import SocketMessages

/// One line of the conversation about address translation: a question, an answer, or the end of an answer's validity.
public struct IOTLBMessage: Payload {
  /// What a message says.
  public enum Kind: UInt8, Sendable {
    /// The back-end asks for a translation.
    case miss = 1
    /// The front-end gives one.
    case update = 2
    /// The front-end takes one back.
    case invalidate = 3
    /// The back-end could not make an access.
    case accessFail = 4
  }

  /// What may be done, or is wanted.
  public struct Permission: OptionSet, Hashable, Sendable {
    /// The byte on the wire.
    public var rawValue: UInt8
    /// A permission from the byte on the wire.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Bit 0.
    public static let read = Permission(rawValue: 1)
    /// Bit 1.
    public static let write = Permission(rawValue: 2)
  }

  /// What the message says.
  public var kind: Kind
  /// The first device address.
  public var address: UInt64
  /// Bytes. 0 in an invalidation means everything; it is without meaning in a miss.
  public var size: UInt64
  /// Where the bytes are in the front-end's address space (with GPA_ADDRESSES: in the guest's). Only in an update.
  public var frontendAddress: UInt64
  /// What may be done, or is wanted. Without meaning in an invalidation: QEMU sends bytes it never set.
  public var permission: Permission

  /// Bytes of padding a C structure has behind its fields.
  package static let padding = 6

  /// A message about `size` bytes from `address` on.
  public init(kind: Kind, address: UInt64, size: UInt64 = 0, frontendAddress: UInt64 = 0, permission: Permission = []) {
    self.kind = kind
    self.address = address
    self.size = size
    self.frontendAddress = frontendAddress
    self.permission = permission
  }

  package init(from reader: inout PayloadReader) throws(ProtocolError) {
    address = try reader.take(UInt64.self)
    size = try reader.take(UInt64.self)
    frontendAddress = try reader.take(UInt64.self)
    permission = Permission(rawValue: try reader.take(UInt8.self))
    let number = try reader.take(UInt8.self)
    guard let kind = Kind(rawValue: number) else { throw ProtocolError("IOTLB_MSG", "type \(number) is not known") }
    self.kind = kind
  }

  package func write(to writer: inout PayloadWriter) {
    writer.put(address)
    writer.put(size)
    writer.put(frontendAddress)
    writer.put(permission.rawValue)
    writer.put(kind.rawValue)
    writer.pad(Self.padding)
  }
}
