/// Where a controller's registers are in BAR 0, in bytes (NVM Express base specification 1.4, 3.1).
public enum NVMeRegister {
  /// CAP, 64 bits.
  public static let capabilities: UInt64 = 0x00
  /// VS.
  public static let version: UInt64 = 0x08
  /// INTMS and INTMC: writing ones masks, and unmasks, interrupts that are not MSI-X.
  public static let interruptMaskSet: UInt64 = 0x0c
  public static let interruptMaskClear: UInt64 = 0x10
  /// CC.
  public static let configuration: UInt64 = 0x14
  /// CSTS.
  public static let status: UInt64 = 0x1c
  /// AQA: sizes of the admin queues, less one each.
  public static let adminQueueAttributes: UInt64 = 0x24
  /// ASQ and ACQ: where the admin queues are, 64 bits each.
  public static let adminSubmissionQueue: UInt64 = 0x28
  public static let adminCompletionQueue: UInt64 = 0x30
  /// The first doorbell.
  public static let doorbells: UInt64 = 0x1000
  /// SQyTDBL, with a stride of 4 bytes.
  public static func submissionTail(_ queue: Int) -> UInt64 { doorbells + 8 * UInt64(truncatingIfNeeded: queue) }
  /// CQyHDBL.
  public static func completionHead(_ queue: Int) -> UInt64 { submissionTail(queue) + 4 }
  /// Bytes of BAR 0.
  static let barSize: UInt64 = 0x4000
}

/// CC, the controller configuration register (3.1.5).
@frozen public struct NVMeConfiguration: Hashable, Sendable {
  /// The register's 32 bits.
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Enabled, for the NVM command set: pages of 2^`pageShift` bytes (12...16), entries of 64 and 16 bytes.
  public init(pageShift: Int) { rawValue = 1 | UInt32(pageShift - 12) << 7 | 6 << 16 | 4 << 20 }

  /// EN.
  public var isEnabled: Bool { rawValue & 1 != 0 }
  /// CSS: 0 is the NVM command set.
  public var commandSet: UInt32 { rawValue >> 4 & 7 }
  /// The host's page size is 2 to this, from MPS.
  public var pageShift: Int { 12 + Int(rawValue >> 7 & 15) }
  /// AMS: 0 is round robin.
  public var arbitration: UInt32 { rawValue >> 11 & 7 }
  /// SHN: 0 nothing, 1 a normal shutdown, 2 an abrupt one.
  public var shutdown: UInt32 {
    get { rawValue >> 14 & 3 }
    set { rawValue = rawValue & ~(3 << 14) | newValue << 14 }
  }
  /// IOSQES and IOCQES: entries of I/O queues are 2 to these.
  public var submissionEntryShift: UInt32 { rawValue >> 16 & 15 }
  public var completionEntryShift: UInt32 { rawValue >> 20 & 15 }
  /// What is no reserved bit.
  static let mask: UInt32 = 0x00ff_fff1
}

/// CSTS, the controller status register (3.1.6).
@frozen public struct NVMeControllerStatus: OptionSet, Hashable, Sendable {
  /// The register's 32 bits.
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// RDY: commands are taken.
  public static var ready: Self { Self(rawValue: 1) }
  /// CFS: the controller cannot go on, and cannot report it in a completion queue.
  public static var fatal: Self { Self(rawValue: 2) }
  /// SHST.
  public static var shutdownOccurring: Self { Self(rawValue: 1 << 2) }
  public static var shutdownComplete: Self { Self(rawValue: 2 << 2) }
  static var shutdown: Self { Self(rawValue: 3 << 2) }
}
