public import DriverDMA
public import Virtio
public import VirtioDrivers

/// Why a machine cannot be made, or its driver cannot go on.
public enum MachineError: Error, Sendable, CustomStringConvertible {
  /// The host has no memory or no descriptors for it.
  case host(String)
  /// A device's options do not go together, or not with the platform.
  case configuration(ConfigurationError)
  /// A driver gave up.
  case driver(DriverError)
  /// The driver of a function that is not virtio gave up.
  case function(String)
  /// The driver of the platform's IOMMU gave up.
  case unit(String)
  /// Memory could not be mapped.
  case dma(DMAError)
  /// What is asked for is not there on this platform.
  case missing(String)

  /// What a driver of any kind threw.
  init(thrown error: any Error) {
    self = (error as? DriverError).map(MachineError.driver) ?? .function("\(error)")
  }

  public var description: String {
    switch self {
    case .host(let why): "the host: \(why)"
    case .configuration(let error): "\(error)"
    case .driver(let error): "\(error)"
    case .function(let why): why
    case .unit(let why): "the IOMMU's driver gave up: \(why)"
    case .dma(let error): "memory could not be mapped: \(error)"
    case .missing(let what): what
    }
  }
}
