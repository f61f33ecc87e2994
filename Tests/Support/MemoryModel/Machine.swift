import DMA
import DriverDMA
import IOMMUInterface
import Logging
import PCI
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioTestKit

/// A random machine: memory with holes, a bus with bridges, functions, and an IOMMU or none.
final class Machine {
  enum Kind: String, CaseIterable { case none, vtd, tce, sun4u, pages }
  let kind: Kind
  let world: World
  let bus: PCIBus
  let platform: ModelPlatform
  let unit: (any ModelUnit)?
  let flaw: Flaw?
  private(set) var functions: [ModelFunction] = []
  /// Where each function is: a slot, and behind a bridge or not. The same for those that come later.
  private var places: [(slot: PCISlot, bridge: PCIBridge?)] = []
  private let log = Logger(label: "model") { _ in SwiftLogNoOpLogHandler() }

  /// Whether drivers run on threads of their own; then all of them accept VIRTIO_F_ACCESS_PLATFORM, and start
  /// themselves.
  let isConcurrent: Bool

  init(_ kind: Kind, flaw: Flaw?, concurrent isConcurrent: Bool = false, _ random: inout SeededGenerator) throws {
    self.kind = kind
    self.isConcurrent = isConcurrent
    self.flaw = flaw
    let bases: [UInt64] = [0x80_0000, 0x1_4000_0000, 0x3f_c000_0000]
    world = try World(base: bases[Int.random(in: 0..<3, using: &random)], &random)
    platform = try ModelPlatform()
    bus = PCIBus(world.memory, messages: platform)
    unit =
      switch kind {
      case .none: nil
      case .vtd: VTdModelUnit(world, &random)
      case .tce: TCEModelUnit(world, &random)
      case .sun4u: Sun4uModelUnit(world, &random)
      case .pages: PageModelUnit(world, &random)
      }
    world.model.tables = Array(repeating: NaiveModel.Table(), count: World.functions)
    let isLate = random.chance(1, in: 3)
    if !isLate { setUnit() }
    var bridges: [PCIBridge] = []
    for i in 0..<Int.random(in: 0...2, using: &random) {
      let parent = random.chance(1, in: 2) ? bridges.last : nil
      // Behind a bridge to a conventional bus all have one number, and so one table.
      var kinds: [PCIExpressKind?] = [nil, .rootPort]
      if unit?.sharesTable ?? true { kinds.append(.bridgeToPCI) }
      let kind = kinds[Int.random(in: 0..<kinds.count, using: &random)]
      bridges.append(bus.add(at: PCISlot(UInt8(1 + i)), behind: parent) { _ in PCIBridge(express: kind) })
    }
    let count = Int.random(in: 1...World.functions, using: &random)
    for i in 0..<count {
      places.append((PCISlot(UInt8(10 + i)), random.chance(1, in: 2) ? bridges.randomElement(using: &random) : nil))
    }
    // The numbers of buses are there before the functions are looked for.
    _ = enumerate()
    for i in 0..<count { try plug(i, starting: !isLate && !isConcurrent, &random) }
    if isLate { setUnit() }
    for function in functions where isLate && !isConcurrent { try start(function) }
    mapWindow(&random)
  }

  private func setUnit() {
    guard let unit else { return }
    bus.setIOMMU(flaw.map { $0.isOfTheUnit ? FlawedUnit(unit.iommu, $0) : unit.iommu } ?? unit.iommu)
  }

  private func enumerate() -> [PCIEnumerator.Found] {
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x70_0000_0000..<0x71_0000_0000, io: 0x1000..<0x1_0000)
    return firmware.enumerate()
  }

  /// Plugs a function in where number `index` is.
  ///
  /// - Parameter windows: where its predecessor's BARs were, if others run on and firmware must not search the bus.
  func plug(
    _ index: Int, starting starts: Bool = true, at windows: [BARWindow]? = nil, _ random: inout SeededGenerator
  ) throws {
    var shape = FunctionShape(&random)
    if isConcurrent { shape.translates = true }
    shape.acceptsWhatIsOffered = flaw != .bypassesTheUnit
    var options = VirtioPCIOptions()
    options.iommuPlatform = shape.translates && flaw != .bypassesTheUnit ? .on : .off
    options.disableLegacy = .on
    options.express = places[index].bridge == nil ? .rootComplexEndpoint : .endpoint
    let device = KeyedDevice(key: shape.key, lies: flaw == .givesAWrongLength)
    var master: BusMaster?
    let place = places[index]
    let function = try bus.add(at: place.slot, behind: place.bridge) { found throws(ConfigurationError) in
      master = found
      return try VirtioPCIFunction(device, options, name: "model", on: found, log: log)
    }
    guard let master, let requester = bus.functions.first(where: { $0.function === function })?.requester else {
      throw ModelFailure("the function in slot \(place.slot) has no number")
    }
    let windows = try windows.map { program(requester, $0) } ?? placeAll(findingBARsOf: requester)
    let unit = shape.translates ? unit : nil
    let one = try ModelFunction(
      index, shape, device, function, master, PCIBusAccess(bus, requester, windows), control: unit?.control(index),
      table: unit?.table(index), in: world)
    if let unit {
      unit.attach(index, master.requester)
      mapControl(one, unit, present: true, &random)
    }
    functions.removeAll { $0.index == index }
    functions.append(one)
    functions.sort { $0.index < $1.index }
    if starts { try start(one) }
  }

  /// Has firmware place everything, and says where a function is.
  private func placeAll(findingBARsOf requester: RequesterID) throws -> [BARWindow] {
    let found = enumerate()
    guard let own = found.first(where: { $0.requester == requester }) else {
      throw ModelFailure("\(requester) is not found")
    }
    // The others' windows may be elsewhere now.
    for other in functions {
      if let new = found.first(where: { $0.requester == other.access.requester }) { other.access.windows = new.windows }
    }
    return own.windows
  }

  /// Resets a function alone (PCI Express base specification, 6.6.2).
  func resetAlone(_ function: ModelFunction) {
    guard let at = function.express else { return }
    function.access.writeConfiguration(
      at: at + PCIExpress.deviceControl, width: 2, UInt32(PCIExpress.initiateFunctionLevelReset))
  }

  /// Gives a function its windows back.
  func restore(_ function: ModelFunction) { _ = program(function.access.requester, function.access.windows) }

  private func program(_ requester: RequesterID, _ windows: [BARWindow]) -> [BARWindow] {
    for window in windows {
      let at = PCIRegister.bar(window.index)
      let isWide = bus.readConfiguration(of: requester, at: at, width: 4) & 6 == 4
      bus.writeConfiguration(of: requester, at: at, width: 4, UInt32(truncatingIfNeeded: window.base))
      if isWide {
        bus.writeConfiguration(of: requester, at: at + 4, width: 4, UInt32(truncatingIfNeeded: window.base >> 32))
      }
    }
    return windows
  }

  private func start(_ function: ModelFunction) throws {
    if let wrong = function.start() { throw ModelFailure("function \(function.index) does not start: \(wrong)") }
  }

  /// Most of the window leads somewhere from the start, so that requests get through.
  private func mapWindow(_ random: inout SeededGenerator) {
    guard let unit, !isConcurrent else { return }
    for table in Set(functions.compactMap { if case .table(let table) = $0.view { table } else { nil } }).sorted() {
      for page in stride(from: unit.window.lowerBound, through: unit.window.upperBound, by: Int(unit.span))
      where random.chance(9, in: 10) {
        let target = (world.data.randomElement(using: &random) ?? 0) & ~(unit.span - 1)
        set(unit, table, page, NaiveModel.Entry(page: target, permissions: .readWrite))
      }
      setLarge(unit, table, VTdModelUnit.large, NaiveModel.Entry(page: world.base >> 12 + 512, permissions: .readWrite))
      invalidate(unit, table, unit.window, &random)
      if kind == .vtd { invalidate(unit, table, VTdModelUnit.large...VTdModelUnit.large + 511, &random) }
    }
  }

  /// The first byte that differs from a model's, rings' device areas left out.
  func difference(from model: NaiveModel) -> (guest: UInt64, real: UInt8, model: UInt8)? {
    world.difference(from: model, ignoring: functions.flatMap(\.deviceArea))
  }

  /// Maps or unmaps the pages of a function's ring, and invalidates them.
  func mapControl(_ function: ModelFunction, _ unit: any ModelUnit, present: Bool, _ random: inout SeededGenerator) {
    guard case .table(let table) = function.view else { return }
    for page in stride(from: function.control, to: function.control + 16, by: Int(unit.span)) {
      let guest = function.guestControl + (page - function.control)
      set(unit, table, page, present ? NaiveModel.Entry(page: guest, permissions: .readWrite) : nil)
    }
    invalidate(unit, table, function.control...function.control + 15, &random)
  }

  /// One page of the unit's, in its tables and in the model's.
  func set(_ unit: any ModelUnit, _ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    unit.set(table, page, entry)
    for i in 0..<unit.span {
      let part = entry.map { NaiveModel.Entry(page: $0.page + i, permissions: $0.permissions) }
      world.model.set(table, page + i, part, remembers: unit.remembers, remembersAbsence: unit.remembersAbsence)
    }
  }

  func setLarge(_ unit: any ModelUnit, _ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    guard unit.setLarge(table, page, entry) else { return }
    for i in 0..<UInt64(512) {
      let part = entry.map { NaiveModel.Entry(page: $0.page + i, permissions: $0.permissions) }
      world.model.set(table, page + i, part, remembers: unit.remembers, remembersAbsence: unit.remembersAbsence)
    }
  }

  func invalidate(_ unit: any ModelUnit, _ table: Int, _ pages: ClosedRange<UInt64>, _ random: inout SeededGenerator) {
    for done in unit.invalidate(table, pages, &random) { world.model.forget(done.table, done.pages) }
  }

  /// Ends every queue. What is wrong with the paths they took.
  func end() -> String? {
    for function in functions { bus.remove(function.function) }
    return functions.lazy.compactMap { $0.complaintOfPath() }.first
  }

  deinit { for function in functions { bus.remove(function.function) } }
}
