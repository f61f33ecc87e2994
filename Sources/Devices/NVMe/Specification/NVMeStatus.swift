/// A status field of a completion: its type in bits 10:8, its code in bits 7:0 (4.6.1).
@frozen public struct NVMeStatus: Hashable, Sendable {
  public var rawValue: UInt16
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }
  @inlinable public init(type: UInt16, _ code: UInt16) { rawValue = type << 8 | code }

  /// Whether nothing went wrong.
  @inlinable public var isSuccess: Bool { rawValue & 0x7ff == 0 }

  /// Whether the command was ended on the driver's demand.
  var wasCalledOff: Bool { self == .abortRequested || self == .abortedByDeletion }

  /// Whether it is one of the medium's, and no answer to a comparison.
  var isMediumError: Bool { rawValue >> 8 & 7 == 2 && self != .compareFailure }

  // Generic.
  public static var success: Self { Self(type: 0, 0x00) }
  public static var invalidOpcode: Self { Self(type: 0, 0x01) }
  public static var invalidField: Self { Self(type: 0, 0x02) }
  /// Some of the command's memory cannot be reached.
  public static var dataTransferError: Self { Self(type: 0, 0x04) }
  public static var internalError: Self { Self(type: 0, 0x06) }
  public static var abortRequested: Self { Self(type: 0, 0x07) }
  public static var abortedByDeletion: Self { Self(type: 0, 0x08) }
  public static var invalidNamespace: Self { Self(type: 0, 0x0b) }
  public static var commandSequenceError: Self { Self(type: 0, 0x0c) }
  public static var invalidSegmentDescriptor: Self { Self(type: 0, 0x0d) }
  public static var invalidDescriptorCount: Self { Self(type: 0, 0x0e) }
  public static var dataLengthInvalid: Self { Self(type: 0, 0x0f) }
  public static var descriptorTypeInvalid: Self { Self(type: 0, 0x11) }
  public static var prpOffsetInvalid: Self { Self(type: 0, 0x13) }
  public static var writeProtected: Self { Self(type: 0, 0x20) }
  public static var lbaOutOfRange: Self { Self(type: 0, 0x80) }
  // Of a command.
  public static var completionQueueInvalid: Self { Self(type: 1, 0x00) }
  public static var invalidQueueIdentifier: Self { Self(type: 1, 0x01) }
  public static var invalidQueueSize: Self { Self(type: 1, 0x02) }
  public static var abortLimitExceeded: Self { Self(type: 1, 0x03) }
  public static var eventRequestLimitExceeded: Self { Self(type: 1, 0x05) }
  public static var invalidInterruptVector: Self { Self(type: 1, 0x08) }
  public static var invalidLogPage: Self { Self(type: 1, 0x09) }
  public static var invalidQueueDeletion: Self { Self(type: 1, 0x0c) }
  public static var featureNotSaveable: Self { Self(type: 1, 0x0d) }
  public static var featureNotChangeable: Self { Self(type: 1, 0x0e) }
  // Of the medium.
  public static var writeFault: Self { Self(type: 2, 0x80) }
  public static var unrecoveredReadError: Self { Self(type: 2, 0x81) }
  public static var compareFailure: Self { Self(type: 2, 0x85) }
}
