/// Virtio over MMIO (§4.2): what device and driver have to agree on.
public enum MMIOTransport {
  /// What MagicValue reads as: the letters "virt".
  public static let magic: UInt32 = 0x7472_6976
  /// What Version reads as for devices of virtio 1.
  public static let version: UInt32 = 2
  /// What Version reads as for legacy devices (§4.2.4).
  public static let legacyVersion: UInt32 = 1

  /// Offsets of the control registers (§4.2.2), 32 bits each; legacy ones (§4.2.4) are at the end.
  public enum Register {
    public static let magicValue = 0x000
    public static let version = 0x004
    public static let deviceID = 0x008
    public static let vendorID = 0x00c
    public static let deviceFeatures = 0x010
    public static let deviceFeaturesSelect = 0x014
    public static let driverFeatures = 0x020
    public static let driverFeaturesSelect = 0x024
    public static let queueSelect = 0x030
    public static let queueSizeMax = 0x034
    public static let queueSize = 0x038
    public static let queueReady = 0x044
    public static let queueNotify = 0x050
    public static let interruptStatus = 0x060
    public static let interruptACK = 0x064
    public static let status = 0x070
    /// Low halves; the high halves are 4 bytes on.
    public static let queueDescriptor = 0x080
    public static let queueDriver = 0x090
    public static let queueDevice = 0x0a0
    public static let sharedMemorySelect = 0x0ac
    /// Low halves; the high halves are 4 bytes on.
    public static let sharedMemoryLength = 0x0b0
    public static let sharedMemoryBase = 0x0b8
    public static let queueReset = 0x0c0
    public static let configurationGeneration = 0x0fc
    /// The device's own configuration, with byte alignment.
    public static let configuration = 0x100
    /// Legacy devices only, as the next two.
    public static let guestPageSize = 0x028
    public static let queueAlign = 0x03c
    public static let queuePageNumber = 0x040
  }

  /// InterruptStatus and InterruptACK bits.
  public enum Interrupt {
    public static let usedBuffer: UInt32 = 1
    public static let configuration: UInt32 = 2
  }
}
