public import IOMMUInterface
import Synchronization

/// What processors do: configuration, memory and I/O accesses.
extension PCIBus {
  // MARK: Configuration

  /// Reads 1, 2 or 4 bytes of a function's configuration space; all ones where there is no function.
  public func readConfiguration(of requester: RequesterID, at offset: Int, width: Int) -> UInt32 {
    guard isConfiguration(offset, width), let function = function(requester) else {
      return UInt32(truncatingIfNeeded: allOnes(width))
    }
    return function.readConfiguration(at: offset, width: width)
  }

  /// Writes 1, 2 or 4 bytes of a function's configuration space. What follows from it has happened when it returns.
  public func writeConfiguration(of requester: RequesterID, at offset: Int, width: Int, _ value: UInt32) {
    guard isConfiguration(offset, width), let function = function(requester) else { return }
    function.writeConfiguration(at: offset, width: width, value)
    if function.configuration.takeResetRequest() { return refresh(resetting: function) }
    guard offset < PCIRegister.firstCapability else { return }
    let now = function.configuration.decoding
    let known = topology.withLock { topology in topology.plugged.first { $0.function === function }?.decoding }
    if known != now {
      refresh()
    } else {
      // Another processor may have written the same and be at work on it.
      changes.withLock { _ in }
    }
  }

  /// Reads through the enhanced configuration access mechanism: 4 KiB for each function, 1 MiB for each bus (PCI
  /// Express base specification, 7.2.2).
  public func read(ecam offset: UInt64, width: Int) -> UInt32 {
    guard let (requester, register) = Self.ecam(offset) else { return UInt32(truncatingIfNeeded: allOnes(width)) }
    return readConfiguration(of: requester, at: register, width: width)
  }

  /// As ``read(ecam:width:)``.
  public func write(ecam offset: UInt64, width: Int, _ value: UInt32) {
    guard let (requester, register) = Self.ecam(offset) else { return }
    writeConfiguration(of: requester, at: register, width: width, value)
  }

  private static func ecam(_ offset: UInt64) -> (RequesterID, Int)? {
    guard let number = UInt16(exactly: offset >> 12) else { return nil }
    return (RequesterID(rawValue: number), Int(offset & 0xfff))
  }

  /// An access that does not cross a dword.
  private func isConfiguration(_ offset: Int, _ width: Int) -> Bool {
    (width == 1 || width == 2 || width == 4) && (0..<4096).contains(offset) && offset % 4 + width <= 4
  }

  private func function(_ requester: RequesterID) -> (any PCIFunction)? {
    topology.withLock { topology in
      topology.plugged.first {
        $0.slot.device == requester.device && $0.slot.function == requester.function
          && topology.bus(behind: $0.bridge) == requester.bus
      }?.function
    }
  }

  // MARK: Memory and I/O

  /// Reads 1, 2, 4 or 8 bytes of memory space; all ones where no BAR decodes all of them.
  public func read(memory address: UInt64, width: Int) -> UInt64 {
    guard Self.isAccess(width), let (function, bar, offset) = target(address, width, isIO: false) else {
      return allOnes(width)
    }
    return function.readBAR(bar, at: offset, width: width) & allOnes(width)
  }

  /// Writes 1, 2, 4 or 8 bytes of memory space.
  ///
  /// - Returns: whether a BAR decoded them.
  @discardableResult
  public func write(memory address: UInt64, width: Int, _ value: UInt64) -> Bool {
    guard Self.isAccess(width), let (function, bar, offset) = target(address, width, isIO: false) else { return false }
    function.writeBAR(bar, at: offset, width: width, value & allOnes(width))
    return true
  }

  /// Reads 1, 2 or 4 bytes of I/O space, the configuration ports 0xCF8 and 0xCFC included; all ones where nothing
  /// decodes them.
  public func read(io port: UInt32, width: Int) -> UInt32 {
    guard Self.isAccess(width), width < 8 else { return .max }
    if port == 0xcf8, width == 4 { return configurationAddress.withLock { $0 } }
    if (0xcfc...0xcff).contains(port) {
      guard let (requester, register) = portTarget(port) else { return UInt32(truncatingIfNeeded: allOnes(width)) }
      return readConfiguration(of: requester, at: register, width: width)
    }
    guard let (function, bar, offset) = target(UInt64(port), width, isIO: true) else {
      return UInt32(truncatingIfNeeded: allOnes(width))
    }
    return UInt32(truncatingIfNeeded: function.readBAR(bar, at: offset, width: width) & allOnes(width))
  }

  /// Writes 1, 2 or 4 bytes of I/O space, the configuration ports included.
  ///
  /// - Returns: whether something decoded them.
  @discardableResult
  public func write(io port: UInt32, width: Int, _ value: UInt32) -> Bool {
    guard Self.isAccess(width), width < 8 else { return false }
    if port == 0xcf8, width == 4 {
      configurationAddress.withLock { $0 = value }
      return true
    }
    if (0xcfc...0xcff).contains(port) {
      guard let (requester, register) = portTarget(port) else { return false }
      writeConfiguration(of: requester, at: register, width: width, value)
      return true
    }
    guard let (function, bar, offset) = target(UInt64(port), width, isIO: true) else { return false }
    function.writeBAR(bar, at: offset, width: width, UInt64(value) & allOnes(width))
    return true
  }

  private func portTarget(_ port: UInt32) -> (RequesterID, Int)? {
    let address = configurationAddress.withLock { $0 }
    guard address >> 31 == 1 else { return nil }
    return (RequesterID(rawValue: UInt16(truncatingIfNeeded: address >> 8)), Int(address & 0xfc) + Int(port & 3))
  }

  private static func isAccess(_ width: Int) -> Bool { width == 1 || width == 2 || width == 4 || width == 8 }

  private func target(_ address: UInt64, _ width: Int, isIO: Bool) -> (any PCIFunction, Int, UInt64)? {
    topology.withLock { $0.target(address, width, isIO: isIO, behind: nil) }
  }
}

extension PCIBus.Topology {
  /// The first BAR that decodes an access on the bus behind a bridge, or further down.
  fileprivate func target(
    _ address: UInt64, _ width: Int, isIO: Bool, behind bridge: Int?
  ) -> (any PCIFunction, Int, UInt64)? {
    for one in plugged where one.bridge == bridge {
      for window in one.decoding.windows where window.isIO == isIO {
        if let offset = window.offset(address, width: width) { return (one.function, window.index, offset) }
      }
      guard let down = one.decoding.bridge, one.decoding.command.contains(isIO ? .ioSpace : .memorySpace),
        down.forwards(address, width: width, isIO: isIO),
        let found = target(address, width, isIO: isIO, behind: one.id)
      else { continue }
      return found
    }
    return nil
  }
}
