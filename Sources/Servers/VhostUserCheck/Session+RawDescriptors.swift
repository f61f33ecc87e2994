internal import DMA
internal import Examination
internal import VhostUserFrontend
internal import Virtio

/// A descriptor with any fields, rules or not.
struct RawDescriptor {
  struct Flags: OptionSet {
    var rawValue: UInt16
    static let next = Flags(rawValue: 1)
    static let write = Flags(rawValue: 2)
    static let indirect = Flags(rawValue: 4)
  }
  var address: UInt64
  var count: UInt32
  var flags: Flags
  var next: UInt16
  /// Packed only.
  var id: UInt16

  init(_ address: UInt64, _ count: UInt32, _ flags: Flags = [], next: UInt16 = 0, id: UInt16 = 0) {
    self.address = address
    self.count = count
    self.flags = flags
    self.next = next
    self.id = id
  }

  /// {address, length, flags, next}: a split ring's descriptor, or one in its indirect table.
  var split: [UInt8] {
    Self.bytes(address, 8) + Self.bytes(UInt64(count), 4) + Self.bytes(UInt64(flags.rawValue), 2)
      + Self.bytes(UInt64(next), 2)
  }

  /// {address, length, ID, flags}: a packed ring's, available in the first lap.
  var packed: [UInt8] {
    Self.bytes(address, 8) + Self.bytes(UInt64(count), 4) + Self.bytes(UInt64(id), 2)
      + Self.bytes(UInt64(flags.rawValue | 1 << 7), 2)
  }

  static func bytes(_ number: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: number >> (8 * UInt64($0))) }
  }
}

extension Session {
  /// Writes descriptors from the ring's start on and makes chains available, one for each of `heads`; `index` is the
  /// available index if it is not to be what follows from that. What the driver's own queue knows is void afterwards.
  func offer(_ descriptors: [RawDescriptor], heads: [UInt16] = [0], index: UInt16? = nil) {
    let layout = ring.layout
    if frontend.features.contains(.ringPacked) {
      space.write(descriptors.flatMap(\.packed), to: layout.descriptorArea)
    } else {
      space.write(descriptors.flatMap(\.split), to: layout.descriptorArea)
      let at = space.bytes(DMAAddress(layout.driverArea.rawValue + 2), count: 2)
      let old = UInt16(at[0]) | UInt16(at[1]) << 8
      for (i, head) in heads.enumerated() {
        let slot = UInt64((old &+ UInt16(i)) % layout.size)
        space.write(RawDescriptor.bytes(UInt64(head), 2), to: DMAAddress(layout.driverArea.rawValue + 4 + 2 * slot))
      }
      let new = index ?? (old &+ UInt16(heads.count))
      space.write(RawDescriptor.bytes(UInt64(new), 2), to: DMAAddress(layout.driverArea.rawValue + 2))
    }
    ring.events?.kick()
  }

  /// Waits for the first used buffer of a split ring that was offered bare. Returns how much was written, or nil.
  func bareUsed() -> UInt32? {
    let end = ContinuousClock.now + context.patience
    while ring.usedIndex(space) == 0 {
      guard ContinuousClock.now < end else { return nil }
      pause(.milliseconds(1))
    }
    let bytes = space.bytes(DMAAddress(ring.layout.deviceArea.rawValue + 8), count: 4)
    return bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }

  /// Gives the back-end time to do what it does about it. A call says nothing: libvhost-user makes one when a queue is
  /// set up.
  func settle() { pause(context.quiet) }
}
