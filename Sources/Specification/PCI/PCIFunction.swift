/// A function on a PCI bus, as the bus sees it. Called from processors' threads, several at once; what a guest writes
/// is never trusted.
public protocol PCIFunction: AnyObject, Sendable {
  /// Its configuration space.
  var configuration: ConfigurationSpace { get }
  /// A configuration read of 1, 2 or 4 bytes. The bus calls this rather than ``configuration``, for registers that do
  /// something.
  func readConfiguration(at offset: Int, width: Int) -> UInt32
  /// A configuration write of 1, 2 or 4 bytes.
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32)
  /// A read of 1, 2, 4 or 8 bytes that lie in BAR `index`, from its start.
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64
  /// A write of 1, 2, 4 or 8 bytes that lie in BAR `index`, from its start.
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64)
  /// Back to power-on: the bus was reset, or the function is being taken out. Afterwards it accesses no memory.
  func reset()
  /// The machine was reset: ``reset()``, and the state that a reset of the bus alone keeps.
  func systemReset()
}

extension PCIFunction {
  public func systemReset() { reset() }
  public func readConfiguration(at offset: Int, width: Int) -> UInt32 { configuration.read(at: offset, width: width) }
  public func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    configuration.write(at: offset, width: width, value)
  }
}

/// A place on a bus: a device number and a function of it.
public struct PCISlot: Hashable, Comparable, Sendable {
  /// 0...31.
  public let device: UInt8
  /// 0...7. Software looks for others only where function 0 is there.
  public let function: UInt8

  /// A place; numbers out of range are a mistake of the machine's author.
  public init(_ device: UInt8, function: UInt8 = 0) {
    precondition(device < 32 && function < 8, "a bus has 32 devices of 8 functions")
    self.device = device
    self.function = function
  }

  public static func < (a: Self, b: Self) -> Bool { (a.device, a.function) < (b.device, b.function) }
}
