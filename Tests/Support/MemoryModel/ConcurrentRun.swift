import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import PCI
import Synchronization
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioTestKit

/// A machine whose memory is taken away while drivers on other threads use it. Once the call that takes it away has
/// returned, no byte of it changes any more; and nothing hangs.
final class ConcurrentRun {
  /// A page of the unit's, in every table, and where it leads.
  private struct Cell {
    var page: UInt64
    var guest: UInt64
  }
  private let machine: Machine
  private var random: SeededGenerator
  private var cells: [Cell] = []
  private var drivers: [(driver: ConcurrentDriver, thread: WorkerThread)] = []
  private let span: UInt64
  private(set) var steps = 0
  private(set) var journal: [String] = []

  init(seed: UInt64, kind: Machine.Kind? = nil, flaw: Flaw? = nil) throws {
    random = SeededGenerator(seed)
    let drawn = Machine.Kind.allCases[Int.random(in: 0..<Machine.Kind.allCases.count, using: &random)]
    machine = try Machine(kind ?? drawn, flaw: flaw, concurrent: true, &random)
    span = machine.unit?.span ?? 1
    journal.append("drivers on threads, with the IOMMU \(machine.kind)")
    // Each cell leads to memory of its own, all of it there.
    let backed = Set(machine.world.data).subtracting((0..<4).map { machine.world.hot >> 12 + $0 })
    let targets = machine.world.data.filter { page in
      page % span == 0 && (0..<span).allSatisfy { backed.contains(page + $0) }
    }
    if let unit = machine.unit {
      let pages = stride(from: unit.window.lowerBound, through: unit.window.upperBound, by: Int(span))
      for (page, guest) in zip(pages, targets) { cells.append(Cell(page: page, guest: guest)) }
    } else {
      cells = targets.map { Cell(page: $0, guest: $0) }
    }
    for cell in cells { map(cell, present: true) }
    for function in machine.functions { try start(function) }
  }

  deinit {
    for (driver, thread) in drivers {
      driver.signals.stops.store(true, ordering: .releasing)
      machine.platform.wake(driver.index)
      thread.join()
    }
  }

  private func own(_ index: Int) -> [Cell] {
    cells.indices.filter { $0 % machine.functions.count == index }.map { cells[$0] }
  }

  private func map(_ cell: Cell, present: Bool) {
    guard let unit = machine.unit else { return }
    for table in Set(machine.functions.map { unit.table($0.index) }) {
      machine.set(unit, table, cell.page, present ? NaiveModel.Entry(page: cell.guest, permissions: .readWrite) : nil)
      machine.invalidate(unit, table, cell.page...cell.page + span - 1, &random)
    }
  }

  // MARK: Drivers

  private func start(_ function: ModelFunction) throws {
    let pages = own(function.index).flatMap { cell in (0..<span).map { cell.page + $0 } }
    let driver = ConcurrentDriver(
      bus: machine.bus, memory: machine.world.memory, platform: machine.platform, requester: function.access.requester,
      windows: function.access.windows, index: function.index, shape: function.shape, control: function.control,
      pages: pages,
      seed: random.next())
    guard !pages.isEmpty else { return }
    drivers.append((driver, try WorkerThread(name: "driver") { driver.run() }))
    try advance([driver], by: 1)
  }

  /// Waits until each has got so many more batches back, begun after now but for the first.
  private func advance(_ concerned: [ConcurrentDriver], by count: Int) throws {
    let targets = concerned.map { ($0, $0.signals.batches.load(ordering: .acquiring) + count) }
    let isThere = machine.platform.wait(ModelPlatform.watcher) {
      targets.allSatisfy { $0.0.signals.hasStopped || $0.0.signals.batches.load(ordering: .acquiring) >= $0.1 }
    }
    for driver in concerned {
      if let trouble = driver.signals.trouble.withLock({ $0 }) { throw ModelFailure(trouble) }
      if driver.signals.needsReset.load(ordering: .acquiring) {
        throw ModelFailure("function \(driver.index) needs a reset, unasked")
      }
    }
    if !isThere { throw ModelFailure("a driver gets nothing done") }
  }

  private func others(than index: Int?) -> [ConcurrentDriver] { drivers.map(\.driver).filter { $0.index != index } }

  /// Lets a driver end, whose device does nothing more.
  private func end(_ index: Int) throws {
    guard let at = drivers.firstIndex(where: { $0.driver.index == index }) else { return }
    let (driver, thread) = drivers.remove(at: at)
    driver.signals.stops.store(true, ordering: .releasing)
    machine.platform.wake(index)
    guard machine.platform.wait(ModelPlatform.watcher, { driver.signals.hasStopped }) else {
      throw ModelFailure("driver \(index) hangs")
    }
    thread.join()
    if let trouble = driver.signals.trouble.withLock({ $0 }) { throw ModelFailure(trouble) }
  }

  // MARK: What is taken away

  func step() throws {
    steps += 1
    guard let function = machine.functions.filter({ !own($0.index).isEmpty }).randomElement(using: &random) else {
      return
    }
    switch Int.random(in: 0..<12, using: &random) {
    case 0..<6: if machine.unit != nil { try unmap() }
    case 6: try machine.world.toggleHotRegion(&random)
    case 7: try stop(function, "reset") { self.transport(function).status = [] }
    case 8:
      try stop(function, "reset alone") {
        self.machine.resetAlone(function)
      } before: {
        self.machine.restore(function)
      }
    case 9: try stop(function, "taken away its queue") { self.transport(function).resetQueue(0) }
    case 10:
      try stop(function, "no bus master") {
        function.setBusMaster(false)
      } before: {
        function.setBusMaster(true)
      }
    default:
      let windows = function.access.windows
      try stop(function, "unplugged") {
        self.machine.bus.remove(function.function)
      } before: {
        try self.machine.plug(function.index, at: windows, &self.random)
      }
    }
  }

  /// Stops every driver and device.
  func finish() throws {
    try advance(others(than: nil), by: 1)
    for driver in others(than: nil) { try end(driver.index) }
    if let wrong = machine.end() { throw ModelFailure(wrong) }
  }

  /// Its registers, as another processor writes them.
  private func transport(_ function: ModelFunction) -> PCIDriverTransport { function.transport }

  private func pattern(_ guest: UInt64, _ pages: UInt64) -> [UInt8] {
    let bytes = World.noise(Int(pages) * 4096, &random)
    machine.world.write(bytes, at: guest << 12)
    return bytes
  }

  private func unmap() throws {
    guard let cell = cells.randomElement(using: &random) else { return }
    journal.insert("page \(String(cell.page, radix: 16)) is unmapped", at: 0)
    map(cell, present: false)
    let bytes = pattern(cell.guest, span)
    try advance(others(than: nil), by: 2)
    if machine.world.real(cell.guest << 12, bytes.count) != bytes {
      throw ModelFailure("a page is written after it was unmapped and invalidated")
    }
    map(cell, present: true)
  }

  /// Something stops a function; afterwards neither its buffers nor its ring change, although the others go on.
  private func stop(
    _ function: ModelFunction, _ how: String, _ body: () throws -> Void, before start: () throws -> Void = {}
  ) throws {
    journal.insert("function \(function.index) is \(how)", at: 0)
    try body()
    let cells = own(function.index)
    let bytes = cells.map { pattern($0.guest, span) }
    try end(function.index)
    let ring = pattern(function.guestControl, 16)
    try advance(others(than: function.index), by: 2)
    for (cell, bytes) in zip(cells, bytes) where machine.world.real(cell.guest << 12, bytes.count) != bytes {
      throw ModelFailure("a buffer is written after the function was \(how)")
    }
    if machine.world.real(function.guestControl << 12, ring.count) != ring {
      throw ModelFailure("the ring is written after the function was \(how)")
    }
    try start()
    guard let now = machine.functions.first(where: { $0.index == function.index }) else { return }
    try self.start(now)
  }
}
