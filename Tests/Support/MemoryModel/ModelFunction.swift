import DMA
import DriverDMA
import IOMMUInterface
import Logging
import PCI
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// What a random function is.
struct FunctionShape {
  /// Whether the driver accepts VIRTIO_F_ACCESS_PLATFORM, which is offered then.
  var translates: Bool
  /// Whether the driver does what the model thinks it does.
  var acceptsWhatIsOffered = true
  var isPacked: Bool
  var hasIndirect: Bool
  var hasEventIndex: Bool
  var size: UInt16
  var key: UInt64

  init(_ random: inout SeededGenerator) {
    translates = random.chance(3, in: 4)
    isPacked = random.chance(1, in: 2)
    hasIndirect = random.chance(1, in: 2)
    hasEventIndex = random.chance(1, in: 2)
    size = [4, 8, 16, 32].randomElement(using: &random) ?? 8
    key = random.next()
  }

  var features: Features {
    var features: Features = [.version1, .ringReset]
    if translates, acceptsWhatIsOffered { features.insert(.accessPlatform) }
    if isPacked { features.insert(.ringPacked) }
    if hasIndirect { features.insert(.indirectDescriptors) }
    if hasEventIndex { features.insert(.eventIndex) }
    return features
  }
}

/// A virtio function in its place, and its driver's ring, written literally.
final class ModelFunction {
  let index: Int
  let shape: FunctionShape
  let device: KeyedDevice
  let function: VirtioPCIFunction
  let master: BusMaster
  let access: PCIBusAccess
  private let world: World
  private(set) var transport: PCIDriverTransport
  private(set) var ring: any LiteralRing
  /// Where the device sees the 16 pages of its ring, and where they are.
  let control: UInt64
  var guestControl: UInt64 { World.rings >> 12 + 16 * UInt64(index) }
  let view: NaiveModel.View
  /// Faults that its two ways to memory have counted.
  private var faults: (translated: UInt64, physical: UInt64) = (0, 0)
  private(set) var requests = 0

  init(
    _ index: Int, _ shape: FunctionShape, _ device: KeyedDevice, _ function: VirtioPCIFunction, _ master: BusMaster,
    _ access: PCIBusAccess,
    control: UInt64?, table: Int?, in world: World
  ) throws {
    self.index = index
    self.shape = shape
    self.device = device
    self.function = function
    self.master = master
    self.access = access
    self.world = world
    self.control = control ?? World.rings >> 12 + 16 * UInt64(index)
    view = table.map { .table($0) } ?? .physical
    transport = try PCIDriverTransport(access)
    ring = LiteralSplitRing(Self.layout(self.control, shape), in: Self.literal(world.memory, self.control, index))
  }

  static func literal(_ memory: GuestMemory, _ control: UInt64, _ index: Int) -> LiteralMemory {
    let literal = LiteralMemory(memory)
    literal.map(
      DMAAddress(control << 12), byteCount: 16 * 4096, to: GuestAddress(World.rings + UInt64(index) * 16 * 4096))
    return literal
  }

  static func layout(_ control: UInt64, _ shape: FunctionShape) -> QueueLayout {
    literalLayout(size: shape.size, packed: shape.isPacked, at: control << 12).layout
  }

  /// Room for an indirect table, across the end of a page.
  var indirectTable: DMAAddress { DMAAddress(control << 12 + 5 * 4096 - 48) }

  /// Resets the device, negotiates, and starts its queue with an empty ring. What is wrong, if anything.
  func start() -> String? {
    // Its configuration was reset as well, if it was reset as a function.
    do throws(PCITransportError) { transport = try PCIDriverTransport(access) } catch { return "no driver: \(error)" }
    transport.status = []
    guard transport.status == [] else { return "the device is not reset when its status says so: \(transport.status)" }
    transport.status = [.acknowledge]
    transport.status = [.acknowledge, .driver]
    transport.accept(shape.features)
    transport.status = [.acknowledge, .driver, .featuresOK]
    guard transport.status.contains(.featuresOK) else { return "features \(shape.features.bits) are refused" }
    guard transport.enableMSIX(Array(repeating: InterruptMessage(address: 0xfee0_0000, data: UInt32(index)), count: 2)),
      transport.setConfigurationVector(0), transport.setVector(1, ofQueue: 0)
    else { return "no messages" }
    ring = makeLiteralRing(
      Self.layout(control, shape), features: shape.features, in: Self.literal(world.memory, control, index))
    adoptRing()
    transport.enableQueue(0, ring.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    return nil
  }

  /// The model takes over what the driver wrote.
  func adoptRing() { world.adopt(guestControl << 12, 16 * 4096) }

  /// What the device may write of its ring, which is judged by what it says and not by its bytes.
  var deviceArea: [Range<UInt64>] {
    func range(_ address: DMAAddress, _ count: UInt64) -> Range<UInt64> {
      let guest = guestControl << 12 + (address.rawValue - control << 12)
      return guest..<guest + count
    }
    if shape.isPacked {
      return [range(ring.layout.descriptorArea, 16 * UInt64(shape.size)), range(ring.layout.deviceArea, 4)]
    }
    return [range(ring.layout.deviceArea, 6 + 8 * UInt64(shape.size))]
  }

  func notify() {
    requests += 1
    transport.notify(0, data: 0)
  }

  var needsReset: Bool { transport.status.contains(.needsReset) }

  // MARK: Which path was taken

  /// What is wrong with the faults that were counted since the last question.
  func complaintOfCounts(expecting fault: Bool) -> String? {
    let counts = master.counts
    let now = (translated: counts.translated.faults, physical: counts.physical.faults)
    let new = (translated: now.translated - faults.translated, physical: now.physical - faults.physical)
    faults = now
    let one: UInt64 = fault ? 1 : 0
    let expected = shape.translates ? (one, 0) : (0, one)
    return new == expected ? nil : "faults counted, translated and physical: \(new), not \(expected)"
  }

  /// What is wrong with the look-ups that were counted, once the queue has ended.
  func complaintOfPath() -> String? {
    let counts = master.counts
    let translated = counts.translated.hits + counts.translated.misses,
      physical = counts.physical.hits + counts.physical.misses
    if shape.translates ? physical != 0 : translated != 0 { return "the wrong path was taken: \(counts)" }
    if requests > 0, shape.translates ? translated == 0 : physical == 0 {
      return "no path was taken for \(requests) requests: \(counts)"
    }
    return nil
  }

  /// Where its PCI Express capability is.
  var express: Int? {
    var at = Int(access.readConfiguration(at: PCIRegister.capabilitiesPointer, width: 1))
    for _ in 0..<48 where at != 0 {
      if access.readConfiguration(at: at, width: 1) == UInt32(PCICapabilityID.express) { return at }
      at = Int(access.readConfiguration(at: at + 1, width: 1))
    }
    return nil
  }

  /// Lets the function be bus master, or not.
  func setBusMaster(_ isOn: Bool) {
    let old = PCICommand(
      rawValue: UInt16(truncatingIfNeeded: access.readConfiguration(at: PCIRegister.command, width: 2)))
    let new = isOn ? old.union(.busMaster) : old.subtracting(.busMaster)
    access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(new.rawValue))
  }
}
