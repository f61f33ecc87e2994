public import PCI
public import Storage

/// How an NVMe controller is to be: everything but the disks has a default.
///
/// There is no option for the way its addresses take, and none may come: the bus's IOMMU alone governs a device that is
/// not virtio (R080).
public struct NVMeOptions: Sendable {
  /// The disks of its namespaces, made as a virtio disk's are: namespace n is the n-th. At least one, at most 64. The
  /// first one's serial number is the controller's, or one that is made of the images' paths if that is empty.
  public var disks: [DiskOptions]
  /// Pairs of I/O queues a driver may have: 1...64.
  public var ioQueues = 8
  /// Most entries of a queue: 2...65536.
  public var queueSize = 1024
  /// Interrupt vectors; nil: one for each pair of queues. 0: none, MSI-X is not there and the interrupt pin is used. At
  /// most 2048.
  public var vectors: Int?
  /// Most bytes of a transfer: a power of two, 8 KiB...16 MiB.
  public var maxTransfer = 1 << 20
  /// Says that SGLs can be used.
  public var offersSGLs = true
  /// What the function is to software. The IDs are assigned to no product: drivers match the class code.
  public var identity = PCIIdentity(
    vendorID: 0x1234, deviceID: 0x0011, revisionID: 1, classCode: 0x01_08_02, subsystemVendorID: 0x1234,
    subsystemID: 0x0011)

  /// A controller for a disk.
  public init(_ disk: DiskOptions) { disks = [disk] }
  /// A controller with a namespace for each disk.
  public init(disks: [DiskOptions]) { self.disks = disks }

  /// The disk of namespace 1.
  public var disk: DiskOptions {
    get { disks[0] }
    set { disks[0] = newValue }
  }
}

/// Why there can be no controller with these options.
public enum NVMeError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A disk's part: which namespace, and why.
  case disk(namespace: Int, DiskError)
  /// An option's value does not do: its name in ``NVMeOptions``, and what it may be.
  case option(String, String)
  /// The host gives no thread or descriptor for it.
  case host(String)

  public var description: String {
    switch self {
    case .disk(_, let error): error.description
    case .option(let name, let rule): "\(name) \(rule)"
    case .host(let text): text
    }
  }
}

extension NVMeOptions {
  static var mostNamespaces: Int { 64 }

  func check() throws(NVMeError) {
    guard (1...Self.mostNamespaces).contains(disks.count) else {
      throw .option("disks", "must be 1 to \(Self.mostNamespaces), not \(disks.count)")
    }
    guard (1...64).contains(ioQueues) else { throw .option("ioQueues", "must be 1 to 64, not \(ioQueues)") }
    guard (2...65536).contains(queueSize) else { throw .option("queueSize", "must be 2 to 65536, not \(queueSize)") }
    if let vectors, !(0...MSIX.maxVectors).contains(vectors) {
      throw .option("vectors", "must be 0 to \(MSIX.maxVectors), not \(vectors)")
    }
    guard (8192...16 << 20).contains(maxTransfer), maxTransfer & (maxTransfer - 1) == 0 else {
      throw .option("maxTransfer", "must be a power of two from 8192 to \(16 << 20), not \(maxTransfer)")
    }
  }
}
