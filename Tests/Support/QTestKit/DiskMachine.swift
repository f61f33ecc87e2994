/// A disk a test wants in its machine.
public struct DiskOptions {
  /// Its server.
  public var backend: DiskBackend
  /// `iommu_platform=on`: whether bit 33 is offered.
  public var platform = true
  /// Whether the packed ring is offered.
  public var packed = false
  /// How many virtqueues.
  public var queues = 1
  /// The largest ring: a power of two.
  public var queueSize = 256
  public var readOnly = false
  /// Address translation service and device-TLB; off, QEMU falls back to notifications of its own.
  public var ats = true
  /// Further words for the back-end's command line (not for QEMU's own device).
  public var serverArguments: [String] = []
  /// 512-byte sectors of the image.
  public var sectors = 2048
  /// What the image holds.
  public var seed: UInt64 = 1
  /// A back-end that runs already, with its image: the machine connects to it instead of starting one.
  public var running: (server: DiskServer, image: DiskImage)?

  public init(_ backend: DiskBackend) { self.backend = backend }
}

/// A machine with disks behind root ports, with or without VT-d, brought up to where a driver can start.
public final class DiskMachine {
  /// One disk: its function, and what is behind it.
  public struct Disk {
    public let function: VirtioFunction
    public let image: DiskImage
    public let server: DiskServer?
    /// Whether the function turned ATS on.
    public let hasATS: Bool
  }

  public let scratch: Scratch
  public let qemu: QEMU
  public let pci: PCI
  public let vtd: VTd?
  public private(set) var disks: [Disk] = []
  private var nextDomain: UInt16 = 1
  private var properties: [String] = []

  /// - `queuedInvalidation`: off, only the registers invalidate; QEMU wants one or the other.
  /// - `monitored`: with a monitor, for `replug(_:)`.
  /// - `addressBits`: 39 or 48 bits of device address, or nil for a machine without an IOMMU.
  public init(
    _ options: [DiskOptions], addressBits: Int? = 48, memory: Int = 64, queuedInvalidation: Bool = true,
    monitored: Bool = false, lifetime: Double = 60
  ) throws(QTestError) {
    scratch = try Scratch()
    var arguments: [String] = []
    var words: [String] = []
    // Slots that their own registers switch, and not ACPI.
    if monitored { arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"] }
    if let addressBits { arguments += ["-device", "intel-iommu,intremap=off,device-iotlb=on,aw-bits=\(addressBits)"] }
    var parts: [(image: DiskImage, server: DiskServer?)] = []
    for (index, disk) in options.enumerated() {
      let image =
        if let running = disk.running { running.image } else {
          try DiskImage(in: scratch, sectors: disk.sectors, name: "disk\(index)", seed: disk.seed)
        }
      var properties =
        "id=disk\(index),bus=rp\(index),disable-legacy=on,iommu_platform=\(disk.platform ? "on" : "off"),ats=\(disk.ats ? "on" : "off")"
        + ",packed=\(disk.packed ? "on" : "off"),queue-size=\(disk.queueSize),num-queues=\(disk.queues)"
      arguments += ["-device", "pcie-root-port,id=rp\(index),chassis=\(index + 1),slot=\(index + 1),addr=\(4 + index)"]
      if disk.backend == .qemu {
        arguments += [
          "-blockdev", "driver=file,node-name=d\(index),filename=\(image.path)\(disk.readOnly ? ",read-only=on" : "")",
        ]
        properties = "virtio-blk-pci,drive=d\(index),\(properties)"
        parts.append((image, nil))
      } else {
        let server: DiskServer
        if let running = disk.running {
          server = running.server
        } else {
          server = try DiskServer(
            disk.backend, image: image, in: scratch, queues: disk.queues, readOnly: disk.readOnly,
            arguments: disk.serverArguments, lifetime: lifetime)
        }
        arguments += ["-chardev", "socket,id=c\(index),path=\(server.socket)"]
        properties = "vhost-user-blk-pci,chardev=c\(index),\(properties)"
        parts.append((image, server))
      }
      arguments += ["-device", properties]
      words.append(properties)
    }
    properties = words
    qemu = try QEMU(memory: memory, arguments, scratch: scratch, monitored: monitored, lifetime: lifetime)
    pci = PCI(qemu)
    try pci.openExtendedSpace()
    vtd = addressBits == nil ? nil : try VTd(qemu)
    for (index, part) in parts.enumerated() {
      let address = try pci.openPort(PCIAddress(bus: 0, device: UInt8(4 + index)))
      let hasATS = try pci.enableATS(address)
      let function = try VirtioFunction(pci, address)
      disks.append(Disk(function: function, image: part.image, server: part.server, hasATS: hasATS))
    }
    if let vtd {
      if queuedInvalidation { try vtd.enableQueue() }
      try vtd.enable()
    }
  }

  /// Memory for a disk behind VT-d: a domain of its own with an empty table, attached.
  /// - `top`: device addresses are handed out downwards from here.
  public func domain(for disk: Disk, levels: Int = 4, top: UInt64 = 0x1_0000_0000) throws(QTestError) -> DeviceMemory {
    guard let vtd else { throw .missing("an IOMMU") }
    let table = try TranslationTable(qemu, domain: nextDomain, levels: levels)
    nextDomain += 1
    try vtd.attach(disk.function.address.requester, to: table, deviceTLB: disk.hasATS)
    try vtd.invalidateContexts()
    return DeviceMemory(qemu, table, top: top)
  }

  /// Pulls a disk out of its port, with the driver's consent, and puts another one in on the same socket, which its
  /// back-end did not see closed. Needs a machine with a monitor.
  public func replug(_ index: Int) throws(QTestError) {
    let old = disks[index]
    guard old.server != nil else { throw .missing("a disk on a socket") }
    let monitor = try qemu.openMonitor()
    let port = PCIAddress(bus: 0, device: UInt8(4 + index))
    try monitor.command("device_del", "{\"id\":\"disk\(index)\"}")
    // The driver's consent: it switches the slot off.
    try pci.setPower(port, false)
    try monitor.take("DEVICE_DELETED")
    let properties = properties[index].split(separator: ",").map { word in
      let parts = word.split(separator: "=", maxSplits: 1)
      return parts.count == 1 ? "\"driver\":\"\(word)\"" : "\"\(parts[0])\":\(Self.json(String(parts[1])))"
    }
    // QEMU says that the old one is gone a moment before it lets go of the socket.
    try qemu.wait(for: "the old disk's socket") { () throws(QTestError) in
      do throws(QTestError) {
        try monitor.command("device_add", "{\(properties.joined(separator: ","))}")
        return true
      } catch .refused(_, let answer) where answer.contains("is in use") {
        return false
      }
    }
    try pci.setPower(port, true)
    let address = old.function.address
    try pci.reopen(address)
    let hasATS = try pci.enableATS(address)
    disks[index] = Disk(
      function: try VirtioFunction(pci, address), image: old.image, server: old.server, hasATS: hasATS)
  }

  private static func json(_ word: String) -> String {
    switch word {
    case "on": "true"
    case "off": "false"
    default: Int(word) == nil ? "\"\(word)\"" : word
    }
  }

  /// Memory for a disk with no IOMMU in front of it, or that passes it by.
  public func physical() -> DeviceMemory { DeviceMemory(qemu, nil) }
}
