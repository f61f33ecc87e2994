internal import DMA
internal import Examination
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

/// A queue's memory, the driver on it, and the events of its last start.
final class ProbeRing {
  let index: Int
  let layout: QueueLayout
  let tables: DMAAddress?
  var queue: DriverQueue
  var events: FrontendQueue?

  /// Pieces of an indirect table, at most.
  static let tableCapacity = 4

  init(
    _ index: Int, _ space: DeviceSpace, _ size: UInt16, _ features: Features, scattered: Bool, tables wanted: Bool,
    scatteredTables: Bool = false
  ) throws(Finding) {
    self.index = index
    let bytes = QueueLayout(
      size: size, descriptorArea: DMAAddress(0), driverArea: DMAAddress(0), deviceArea: DMAAddress(0)
    )
    .byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    // In the middle of a page, so that even a short area has two of them; the packed event areas are too short for
    // that.
    func area(_ count: Int) throws(Finding) -> DMAAddress {
      let lead = scattered ? max(0, 4096 - (count / 2 + 15) / 16 * 16) : 0
      let first = try space.allocate((lead + count + 4095) / 4096, scattered: scattered)
      return DMAAddress(first.rawValue + UInt64(lead))
    }
    let layout = QueueLayout(
      size: size, descriptorArea: try area(bytes.descriptor), driverArea: try area(bytes.driver),
      deviceArea: try area(bytes.device))
    self.layout = layout
    let lead = scatteredTables ? 4096 - 16 : 0
    let room =
      try wanted
      ? space.allocate(
        (lead + Int(size) * Self.tableCapacity * 16 + 4095) / 4096, scattered: scattered || scatteredTables) : nil
    tables = room.map { DMAAddress($0.rawValue + UInt64(lead)) }
    queue = try Self.driver(layout, features, try Self.memory(layout, tables, space, features))
  }

  /// A new driver on cleared areas.
  func renew(_ space: DeviceSpace, _ features: Features) throws(Finding) {
    queue = try Self.driver(layout, features, try Self.memory(layout, tables, space, features))
  }

  /// Goes on where the areas are now, after pages were moved.
  func follow(_ space: DeviceSpace, _ features: Features) throws(Finding) {
    let memory = try Self.memory(layout, tables, space, features)
    do throws(DriverQueueError) { try queue.move(to: memory) } catch {
      throw .notChecked("the driver's ring: \(error)")
    }
  }

  private static func driver(
    _ layout: QueueLayout, _ features: Features, _ memory: consuming DriverQueueMemory
  ) throws(Finding) -> DriverQueue {
    do throws(DriverQueueError) {
      return try DriverQueue(layout: layout, features: features, memory: memory)
    } catch {
      throw .notChecked("the driver's ring: \(error)")
    }
  }

  private static func memory(
    _ layout: QueueLayout, _ tables: DMAAddress?, _ space: DeviceSpace, _ features: Features
  ) throws(Finding) -> DriverQueueMemory {
    let bytes = layout.byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    let descriptors = try space.cells(layout.descriptorArea, count: bytes.descriptor)
    let driver = try space.cells(layout.driverArea, count: bytes.driver)
    let device = try space.cells(layout.deviceArea, count: bytes.device)
    guard let tables else {
      return DriverQueueMemory(descriptorArea: descriptors, driverArea: driver, deviceArea: device)
    }
    return DriverQueueMemory(
      descriptorArea: descriptors, driverArea: driver, deviceArea: device,
      tables: try space.cells(tables, count: Int(layout.size) * tableCapacity * 16), tableAddress: tables,
      tableCapacity: tableCapacity)
  }

  /// The used index of a split ring, as the driver would read it.
  func usedIndex(_ space: DeviceSpace) -> UInt16 {
    let bytes = space.bytes(DMAAddress(layout.deviceArea.rawValue + 2), count: 2)
    return UInt16(bytes[0]) | UInt16(bytes[1]) << 8
  }
}
