internal import DriverDMA
internal import IOMMUInterface
import PCI

extension NVMeDriver {
  func read(_ register: UInt64) -> UInt32 { access.readBAR(NVMeController.registerBAR, at: register, width: 4) }
  func write(_ register: UInt64, _ value: UInt32) {
    access.writeBAR(NVMeController.registerBAR, at: register, width: 4, value)
  }
  func write64(_ register: UInt64, _ value: UInt64) {
    write(register, UInt32(truncatingIfNeeded: value))
    write(register + 4, UInt32(truncatingIfNeeded: value >> 32))
  }

  /// Looks until `condition` holds. False: it never did.
  func waitPlainly(_ condition: () -> Bool) -> Bool {
    for attempt in 0..<max(options.wait.attempts, 1) {
      if condition() { return true }
      if attempt + 1 < options.wait.attempts { options.wait.pause() }
    }
    return false
  }

  /// The same, as long as the controller is well.
  func waitUntil(_ condition: () throws(NVMeDriverError) -> Bool) throws(NVMeDriverError) -> Bool {
    for attempt in 0..<max(options.wait.attempts, 1) {
      if try condition() { return true }
      // Now and then: a look at a register costs more than one at memory.
      if attempt % 64 == 63 || options.wait.attempts < 64, status.contains(.fatal) { throw .fatal }
      if attempt + 1 < options.wait.attempts { options.wait.pause() }
    }
    if status.contains(.fatal) { throw .fatal }
    return false
  }

  /// Enables MSI-X with a message for each of the first vectors.
  func enableMSIX() throws(NVMeDriverError) {
    var at = Int(access.readConfiguration(at: PCIRegister.capabilitiesPointer, width: 1))
    // A list that leads in a circle ends too.
    for _ in 0..<48 where at >= PCIRegister.firstCapability {
      if access.readConfiguration(at: at, width: 1) == UInt32(PCICapabilityID.msix) { break }
      at = Int(access.readConfiguration(at: at + 1, width: 1))
    }
    guard at >= PCIRegister.firstCapability, access.readConfiguration(at: at, width: 1) == UInt32(PCICapabilityID.msix)
    else { throw .vectors(0) }
    let control = access.readConfiguration(at: at + 2, width: 2)
    let table = access.readConfiguration(at: at + 4, width: 4)
    let count = Int(control & 0x7ff) + 1
    guard options.messages.count <= count else { throw .vectors(count) }
    for (i, message) in options.messages.enumerated() {
      let words = [
        UInt32(truncatingIfNeeded: message.address), UInt32(truncatingIfNeeded: message.address >> 32), message.data, 0,
      ]
      for (j, word) in words.enumerated() {
        access.writeBAR(Int(table & 7), at: UInt64(table & ~7) + UInt64(16 * i + 4 * j), width: 4, word)
      }
    }
    access.writeConfiguration(at: at + 2, width: 2, control & 0x3fff | 0x8000)
  }
}
