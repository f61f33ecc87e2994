/// Which addresses a device uses, as its space records it.
public enum PathTaken: String, Hashable, Sendable {
  /// Physical memory, past any IOMMU.
  case physical
  /// Memory that the platform translates addresses to.
  case platform
}

/// The expected outcome of a cell.
public enum CellOutcome: Hashable, Sendable {
  /// There is no such case, and why.
  case impossible(String)
  /// The device is not made, and a message says what to do.
  case refusedAtCreation
  /// The device does not let FEATURES_OK stick, and accesses no memory.
  case refusedByDevice
  /// The driver does not let the device in, and gives it no memory.
  case refusedByDriver
  /// The bytes arrive, by this path.
  case data(PathTaken)
  /// The access is refused on this path, and not a byte moves.
  case fault(PathTaken)
  /// The bytes arrive one way; the other way the access is refused, and not a byte moves.
  case oneWay(PathTaken, allowed: Direction)

  /// Which way bytes go.
  public enum Direction: String, Hashable, Sendable {
    /// The device reads memory.
    case fromMemory = "from memory"
    /// The device writes memory.
    case toMemory = "to memory"
  }

  /// A word for tables.
  public var word: String {
    switch self {
    case .impossible: "impossible"
    case .refusedAtCreation: "refused at creation"
    case .refusedByDevice: "refused by the device"
    case .refusedByDriver: "refused by the driver"
    case .data(let path): "data, \(path.rawValue)"
    case .fault(let path): "fault, \(path.rawValue)"
    case .oneWay(let path, let way): "data \(way.rawValue) only, \(path.rawValue)"
    }
  }
}
