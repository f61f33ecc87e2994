/// A "driver MUST" or "driver MUST NOT" of virtio 1.4 in our own words; of §5.13 more than those.
struct Clause {
  /// The section of the normative text, and a number within it.
  var id: String
  var text: String
  /// Why a driver cannot break it against these devices, or breaking it leaves nothing for a device to see; nil: it is
  /// attacked.
  var reason: String?

  init(_ id: String, _ text: String, _ reason: String? = nil) {
    self.id = id
    self.text = text
    self.reason = reason
  }
}

/// The clauses for drivers of chapters 2, 3, 4.1, 4.2, 5.2, 5.4, 5.13 and 6; those of legacy sections too. Which test
/// attacks which is in the tests: `attack("2.7.6.1-1", …)`.
enum ClauseTable {
  static let chapters = ["2", "3", "4.1", "4.2", "5.2", "5.4", "5.13", "6"]
  static func chapter(of id: String) -> String? { chapters.first { id.hasPrefix($0 + ".") } }
  static let all = facilities + splitRing + packedRing + operation + pci + mmio + devices + iommu

  /// Reasons that several clauses share.
  static let inside =
    "What a driver thinks of what it read stays inside the driver: no access follows from it that a device could see."
  private static let administration =
    "There is no administration virtqueue: neither the feature nor the queue is offered."
  private static let zones =
    "VIRTIO_BLK_F_ZONED is not offered, and accepting it is refused (5.2.5.1-2): zones never come to be."

  static let facilities = [
    Clause("2.1.1-1", "set the status bits of the steps done, one by one"),
    Clause("2.1.1-2", "clear no status bit but by a reset"),
    Clause("2.1.1-3", "after FAILED, reset before initializing again"),
    Clause("2.2.1-1", "accept no feature that was not offered"),
    Clause(
      "2.2.1-2", "accept no feature whose prerequisite was not accepted",
      "No feature that these devices and transports offer has a prerequisite that they offer."),
    Clause("2.2.1-3", "look at what is offered", inside),
    Clause("2.2.1-4", "accept no bit that is reserved, undefined, or of another transport or device"),
    Clause(
      "2.2.1-5", "set FAILED and stop where a feature is missing that there is no way without",
      "A driver that goes on as if it had the feature breaks the rules of that feature; those are attacked each at its place."
    ),
    Clause("2.2.1-6", "do not fail because of unknown features", inside),
    Clause("2.5.1-1", "take no read of more than 32 bits, or of several fields, for atomic"),
    Clause("2.5.1-2", "look at a feature before using its optional fields"),
    Clause("2.5.1-3", "expect no particular size of the configuration", inside),
    Clause("2.6.1.1.2-1", "look whether a queue reset was done"),
    Clause("2.6.1.2.2-1", "set a queue up again before enabling it again"),
    Clause("2.12.1.1.7-1", "access a member's legacy registers by commands as the owner's rules say", administration),
    Clause("2.12.1.2.5-1", "use capabilities by commands as set by the owner", administration),
    Clause("2.12.1.3.6-1", "create and destroy resource objects in order", administration),
    Clause("2.12.1.4.4.2-1", "get and set device parts while the member is stopped", administration),
    Clause("2.12.1.6-1", "send well-formed group administration commands", administration),
    Clause("2.13.2-1", "use administration virtqueues for such commands only, and of enabled groups", administration),
  ]

  static let splitRing = [
    Clause("2.7.1-1", "align the three areas of a split queue"),
    Clause("2.7.2-1", "legacy: take the queue's size from the device, and give it as much memory as the layout needs"),
    Clause("2.7.3-1", "legacy: write rings in the guest's byte order"),
    Clause("2.7.4.2-1", "put device-writable descriptors behind device-readable ones"),
    Clause("2.7.5.2-1", "make no chain longer than 2^32 bytes"),
    Clause("2.7.5.2-2", "make no loops"),
    Clause("2.7.5.2-3", "with IN_ORDER, let each descriptor's next be the following one"),
    Clause("2.7.5.3.1-1", "use no indirect table without the feature"),
    Clause("2.7.5.3.1-2", "put no indirect table into another"),
    Clause("2.7.5.3.1-3", "make no chain longer than the queue"),
    Clause("2.7.5.3.1-4", "set not both INDIRECT and NEXT"),
    Clause("2.7.5.3.1-5", "with IN_ORDER, number indirect descriptors in sequence"),
    Clause("2.7.6.1-1", "never decrement the available index"),
    Clause("2.7.7.1-1", "without an event index, set the flags to 0 or 1"),
    Clause("2.7.7.1-2", "with an event index, set the flags to 0"),
    Clause("2.7.7.1-3", "put up with notifications that mean nothing", inside),
    Clause("2.7.8.3-1", "expect nothing behind the bytes that the device says it wrote", inside),
    Clause("2.7.10.1-1", "set the used ring's flags to 0 when it is made"),
    Clause("2.7.10.1-2", "without an event index, ignore avail_event"),
    Clause("2.7.10.1-3", "without an event index, notify if the used ring's flags are 0"),
    Clause("2.7.10.1-4", "with an event index, ignore the lowest bit of the flags"),
    Clause("2.7.10.1-5", "with an event index, notify if avail_event was reached"),
    Clause("2.7.13.3.1-1", "write entries and descriptors before the index shows them"),
    Clause("2.7.13.4.1-1", "show the index before reading whether to notify"),
  ]

  static let packedRing = [
    Clause("2.8.11-1", "align the three areas of a packed queue"),
    Clause("2.8.16-1", "change no descriptor that the device has not used"),
    Clause("2.8.16-2", "change no descriptor after making it available"),
    Clause("2.8.16-3", "say the next descriptor's offset and wrap counter in notifications with data"),
    Clause("2.8.17-1", "make no list longer than the device allows"),
    Clause("2.8.17-2", "make no list longer than the queue, so no loops"),
    Clause("2.8.17-3", "put device-writable descriptors behind device-readable ones"),
    Clause("2.8.17-4", "have room for a whole list before making its first descriptor available"),
    Clause("2.8.17-5", "make a list's first descriptor available last"),
    Clause("2.8.19-1", "use no indirect table without the feature"),
    Clause("2.8.19-2", "set no flag but WRITE in an indirect table"),
    Clause("2.8.19-3", "make no indirect table longer than the device allows"),
    Clause("2.8.19-4", "put no descriptor with INDIRECT into a list that NEXT links"),
    Clause("2.8.21.1.1-1", "write a descriptor before its flags make it available"),
    Clause("2.8.21.3.1-1", "make buffers available before reading whether to notify"),
  ]

  static let operation = [
    Clause("3.1.1-1", "initialize in sequence, beginning with a reset"),
    Clause("3.1.1-2", "do not write the configuration before features are settled"),
    Clause("3.1.1-3", "accept no features after FEATURES_OK"),
    Clause("3.1.1-4", "read FEATURES_OK back"),
    Clause("3.1.1-5", "do not use a device that refused the features"),
    Clause("3.1.1-6", "do not go on after a step that went wrong"),
    Clause("3.1.1-7", "send no notification before DRIVER_OK"),
    Clause("3.1.2-1", "legacy: leave FEATURES_OK out"),
    Clause("3.3.1-1", "change no buffers that the device has"),
    Clause("3.3.1-2", "reset before taking buffers away"),
    Clause("3.4.1-1", "look whether the device is suspended"),
    Clause("3.4.1-2", "make no buffers available to a suspended device"),
    Clause("3.4.1-3", "send a suspended device no notifications"),
    Clause("3.4.1-4", "change nothing in a suspended device's configuration"),
    Clause("3.4.1-5", "wait until the device says that it goes on"),
    Clause("6.1-1", "accept VERSION_1"),
    Clause("6.1-2", "with ACCESS_PLATFORM, set the IOMMU up or switch it off"),
    Clause("6.1-3", "without ACCESS_PLATFORM, give the device physical addresses"),
    Clause(
      "6.1-4", "with ORDER_PLATFORM, use barriers that hardware needs",
      "The device is in the driver's own coherence domain: every barrier that orders memory for a processor orders it for the device, and a driver without any is 2.7.13.3.1-1."
    ),
    Clause(
      "6.1-5", "enable virtual functions after negotiating SR_IOV only",
      "There is no SR-IOV capability in which they could be enabled."),
    Clause("6.1-6", "accept SR_IOV of PCI functions with the capability only"),
    Clause(
      "6.3-1", "legacy: accept ANY_LAYOUT where it is offered",
      "Not accepting it leaves a driver with the framing of old, which is any layout's special case."),
  ]

  static let pci = [
    Clause("4.1.2.2-1", "match the vendor and device IDs of virtio, and any revision", inside),
    Clause("4.1.3.1-1", "access configuration fields in their own width"),
    Clause("4.1.4.1-1", "ignore capabilities of reserved types", inside),
    Clause("4.1.4.1-2", "accept longer capabilities", inside),
    Clause("4.1.4.1-3", "ignore capabilities of reserved BARs", inside),
    Clause("4.1.4.1-4", "put up with long structures", inside),
    Clause("4.1.4.1-5", "write no capability but the access window"),
    Clause("4.1.4.3.2-1", "write no read-only field of the common configuration"),
    Clause("4.1.4.3.2-2", "packed: do not set a queue's size to 0"),
    Clause("4.1.4.3.2-3", "split: set a queue's size to powers of two only"),
    Clause("4.1.4.3.2-4", "set a queue up before enabling it"),
    Clause("4.1.4.3.2-5", "after a reset, wait until the status reads 0"),
    Clause("4.1.4.3.2-6", "never write 0 to queue_enable"),
    Clause("4.1.4.3.2-7", "take a queue reset for done when queue_reset reads 0"),
    Clause("4.1.4.3.2-8", "use the indices of administration virtqueues for them", administration),
    Clause(
      "4.1.4.8.2-1", "look at the vendor of vendor data",
      "There is no vendor data capability that could be interpreted or written."),
    Clause("4.1.4.9.2-1", "set the access window to multiples of its length"),
    Clause("4.1.4.9.2-2", "use the access window inside of structures only"),
    Clause("4.1.4.10-1", "legacy: write registers in the guest's byte order"),
    Clause("4.1.4.10-2", "legacy: access the configuration in widths that fit"),
    Clause("4.1.5.1.1.1-1", "look for capabilities before taking a device for a legacy one", inside),
    Clause("4.1.5.1.2.2-1", "support any size of the MSI-X table", inside),
    Clause("4.1.5.1.2.2-2", "map no event to a vector outside of the table"),
    Clause("4.1.5.1.2.2-3", "read back whether a vector was mapped"),
    Clause("4.1.5.1.3.1-1", "legacy: write the page of a queue's memory"),
    Clause("4.1.5.2.1-1", "without NOTIFICATION_DATA, notify with 16 bits"),
    Clause("4.1.5.2.1-2", "with NOTIFICATION_DATA, notify with 32 bits"),
    Clause("4.1.5.2.1-3", "notify with the queue's index"),
    Clause("4.1.5.2.1-4", "with NOTIFICATION_DATA, put the queue's index into the lower half"),
    Clause("4.1.5.2.1-5", "with NOTIF_CONFIG_DATA, notify with the device's name for the queue"),
    Clause("4.1.5.2.1-6", "with both, put that name into the lower half"),
    Clause("4.1.5.4.2-1", "put up with one interrupt for changes and buffers", inside),
  ]

  static let mmio = [
    Clause("4.2.2.2-1", "access nothing that is not in the table of registers"),
    Clause("4.2.2.2-2", "write no read-only register"),
    Clause("4.2.2.2-3", "read no write-only register"),
    Clause("4.2.2.2-4", "access registers with 32 bits, aligned"),
    Clause("4.2.2.2-5", "access configuration fields in their own width"),
    Clause("4.2.2.2-6", "ignore a device with another MagicValue", inside),
    Clause("4.2.2.2-7", "ignore a device with another Version", inside),
    Clause("4.2.2.2-8", "ignore a device with DeviceID 0", "There is none: this transport makes no placeholders."),
    Clause("4.2.2.2-9", "choose a word before reading DeviceFeatures"),
    Clause("4.2.2.2-10", "choose a word before writing DriverFeatures"),
    Clause("4.2.2.2-11", "make no queue larger than QueueSizeMax"),
    Clause("4.2.2.2-12", "access no field of a queue while QueueReady is not 0"),
    Clause("4.2.2.2-13", "stop a queue by writing 0 to QueueReady, and read it back"),
    Clause("4.2.2.2-14", "ignore undefined bits of InterruptStatus", inside),
    Clause("4.2.2.2-15", "acknowledge the events handled"),
    Clause("4.2.2.2-16", "acknowledge no undefined bits"),
    Clause("4.2.2.2-17", "take a queue reset for done when QueueReset reads 0"),
    Clause("4.2.3.1.1-1", "begin by checking MagicValue and Version", inside),
    Clause("4.2.3.1.1-2", "stop at a DeviceID of 0", "There is none: this transport makes no placeholders."),
    Clause("4.2.3.1.1-3", "leave the shared memory registers alone if no shared memory is expected"),
    Clause("4.2.3.4.1-1", "read InterruptStatus after an interrupt"),
    Clause("4.2.3.4.1-2", "acknowledge an interrupt that was handled"),
    Clause("4.2.4-1", "legacy: write the page size before queues are used"),
    Clause("4.2.4-2", "legacy: align used rings to a power of two"),
    Clause("4.2.4-3", "legacy: write the page number of a queue's memory"),
  ]

  static let devices = [
    Clause("5.2.5.1-1", "do not read writeback before FEATURES_OK"),
    Clause("5.2.5.1-2", "do not accept ZONED without knowing every zone model"),
    Clause("5.2.5.1-3", "accept no DISCARD of a host-managed zoned disk", zones),
    Clause("5.2.5.1-4", "refuse host-managed disks that the driver cannot drive", zones),
    Clause("5.2.6.1-1", "submit nothing beyond the disk's end"),
    Clause("5.2.6.1-2", "set the sector of a flush to 0"),
    Clause("5.2.6.1-3", "read and write whole sectors"),
    Clause("5.2.6.1-4", "send whole ranges"),
    Clause("5.2.6.1-5", "ask for 20 bytes of identity"),
    Clause("5.2.6.1-6", "discard no more ranges at once than the device takes"),
    Clause("5.2.6.1-7", "erase no more ranges at once than the device takes"),
    Clause("5.2.6.1-8", "write zeroes to no more ranges at once than the device takes"),
    Clause("5.2.6.1-9", "take no volatile write for durable after switching writeback off", inside),
    Clause("5.2.6.1-10", "leave the unmap bit of discards 0"),
    Clause("5.2.6.1-11", "expect no particular data where was discarded", inside),
    Clause("5.2.6.1-12", "expect nothing of the single ranges of a request that failed", inside),
    Clause("5.2.6.1-13", "send zone requests to zoned disks, each with its sector and size"),
    Clause("5.2.6.3-1", "legacy: write requests in the guest's byte order"),
    Clause("5.2.6.3-2", "legacy: take FLUSH_OUT for a flush"),
    Clause("5.2.6.4-1", "legacy: frame requests in header, data and status"),
    Clause("5.4.6.1-1", "put no device-readable buffers into the queue"),
    Clause("5.4.6.1-2", "look at how many bytes came"),
  ]
}
