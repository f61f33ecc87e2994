/// Where the registers of an AMD-Vi unit are (AMD I/O Virtualization Technology specification, chapter "Registers"); 8
/// bytes each.
enum AMDViRegister {
  static let deviceTable = 0x0
  static let commandBuffer = 0x8
  static let eventLog = 0x10
  static let control = 0x18
  static let features = 0x30
  static let commandHead = 0x2000
  static let commandTail = 0x2008
  static let eventHead = 0x2010
  static let eventTail = 0x2018
  static let status = 0x2020
  /// Bytes of registers.
  static let byteCount = 0x4000
}

/// Bits of the control register.
struct AMDViControl: OptionSet {
  var rawValue: UInt64
  static var enabled: Self { Self(rawValue: 1) }
  static var eventLog: Self { Self(rawValue: 1 << 2) }
  static var eventInterrupt: Self { Self(rawValue: 1 << 3) }
  static var completionInterrupt: Self { Self(rawValue: 1 << 4) }
  static var commandBuffer: Self { Self(rawValue: 1 << 12) }
}

/// Bits of the status register: the first three are cleared by a write of one, the others say what runs.
struct AMDViStatus: OptionSet {
  var rawValue: UInt64
  static var eventOverflow: Self { Self(rawValue: 1) }
  static var eventInterrupt: Self { Self(rawValue: 1 << 1) }
  static var completionInterrupt: Self { Self(rawValue: 1 << 2) }
  static var eventLogRuns: Self { Self(rawValue: 1 << 3) }
  static var commandsRun: Self { Self(rawValue: 1 << 4) }
  static var clearable: Self { [.eventOverflow, .eventInterrupt, .completionInterrupt] }
}

/// What a unit writes into its event log (chapter "Event Logging").
enum AMDViEvent {
  /// A device table entry that says nothing, or is not there.
  case illegalEntry
  /// A translation that the tables do not have, or forbid.
  case pageFault(isPresent: Bool, isForbidden: Bool, isReserved: Bool)
  /// The device table, or a page table, is where there is no memory.
  case deviceTableUnreachable
  case pageTableUnreachable
  case illegalCommand
  case commandsUnreachable

  /// The code in the highest four bits, and the flags below.
  var bits: UInt64 {
    switch self {
    case .illegalEntry: 1 << 60
    case .pageFault(let isPresent, let isForbidden, let isReserved):
      2 << 60 | (isPresent ? 1 << 52 : 0) | (isForbidden ? 1 << 54 : 0) | (isReserved ? 1 << 55 : 0)
    case .deviceTableUnreachable: 3 << 60
    case .pageTableUnreachable: 4 << 60
    case .illegalCommand: 5 << 60
    case .commandsUnreachable: 6 << 60
    }
  }
}
