/// A PCI function as its driver reaches it: a machine answers with its bus. BAR accesses are relative to the BAR.
public protocol PCIFunctionAccess: AnyObject {
  /// Reads 1, 2 or 4 bytes of configuration space.
  func readConfiguration(at offset: Int, width: Int) -> UInt32
  /// Writes 1, 2 or 4 bytes of configuration space.
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32)
  /// Reads 1, 2 or 4 bytes at an offset in BAR `index`.
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32
  /// Writes 1, 2 or 4 bytes at an offset in BAR `index`.
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32)
}
