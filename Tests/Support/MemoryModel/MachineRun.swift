import DMA
import IOMMUInterface
import PCI
import Virtio
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// One random machine and what happens to it, a step after the other: everything follows from the random seed.
final class MachineRun {
  let machine: Machine
  private var random: SeededGenerator
  private(set) var steps = 0
  private(set) var requests = 0
  private(set) var faults = 0
  /// What was done, the last of it first, for the search for a defect.
  private(set) var journal: [String] = []

  init(seed: UInt64, kind: Machine.Kind? = nil, flaw: Flaw? = nil) throws {
    random = SeededGenerator(seed)
    let drawn = Machine.Kind.allCases[Int.random(in: 0..<Machine.Kind.allCases.count, using: &random)]
    machine = try Machine(kind ?? drawn, flaw: flaw, &random)
    note("a machine with the IOMMU \(machine.kind), memory from \(String(machine.world.base, radix: 16))")
  }

  private func note(_ text: String) {
    journal.insert(text, at: 0)
    if journal.count > 12 { journal.removeLast() }
  }

  private var world: World { machine.world }

  /// One step.
  func step() throws {
    steps += 1
    guard let function = machine.functions.randomElement(using: &random) else { return }
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<52: try request(function)
    case 52..<56: processorWrites()
    case 56..<85: changeMapping(function)
    case 85..<91: invalidateSome(function)
    case 91..<93: try restart(function)
    case 93..<94: try resetAlone(function)
    case 94..<95: try closeGate(function)
    case 95..<96: try takeRing(function)
    case 96..<97: try breakRule(function)
    case 97..<98: try replug(function)
    default:
      try world.toggleHotRegion(&random)
      note("the hot region is \(world.isHotThere ? "there" : "gone")")
    }
  }

  func end() throws {
    if let wrong = machine.end() { throw ModelFailure(wrong) }
  }

  // MARK: Requests

  private func request(_ function: ModelFunction) throws {
    let indirect = function.shape.hasIndirect && random.chance(1, in: 2)
    let pieces = machine.decidableChain(for: function, most: indirect ? 8 : min(6, function.ring.free), &random)
    guard machine.ways(pieces, function.view) <= 64 else { return }
    let shape =
      "\(function.shape.translates ? "translated" : "physical"), \(function.shape.isPacked ? "packed" : "split")\(indirect ? ", indirect" : "")"
    let text = pieces.map { "\($0.access) \(String($0.address.rawValue, radix: 16))+\($0.length)" }
    note("function \(function.index), \(shape): \(text.joined(separator: ", "))")
    let outcomes = world.model.outcomes(of: pieces, function.view, key: function.shape.key)
    let chain = pieces.map { LiteralDescriptor($0.address, $0.length, writable: $0.access == .write) }
    function.ring.wantCalls()
    let id = function.ring.post(chain, table: indirect ? function.indirectTable : nil)
    function.ring.publish()
    function.adoptRing()
    function.notify()
    var used: [LiteralUsed] = []
    guard
      machine.platform.wait(
        function.index,
        {
          used += function.ring.takeUsed()
          return !used.isEmpty || function.needsReset
        })
    else { throw ModelFailure("function \(function.index) hangs") }
    guard used.count == 1, used[0].id == UInt32(id) else {
      throw ModelFailure(
        "used is \(used)\(function.needsReset ? ", and the device needs a reset" : ""), where it should have been \(id)"
      )
    }
    requests += 1
    try judge(function, outcomes, written: used[0].length)
  }

  /// What was left behind is one of what may be.
  private func judge(_ function: ModelFunction, _ outcomes: [NaiveModel.Outcome], written: UInt32) throws {
    let seen = function.device.takeSeen()
    guard seen.count == 1 else { throw ModelFailure("the device saw \(seen.count) chains instead of one") }
    let allowed = outcomes.map { $0.fault.map { "\($0)" } ?? "none" }
    var complaint =
      "the fault was \(seen[0].map { "\($0)" } ?? "none"), where it may have been \(allowed.joined(separator: " or "))"
    for outcome in outcomes where outcome.fault == seen[0] {
      guard outcome.written == Int(written) else {
        complaint = "\(written) bytes were written, and not \(outcome.written)"
        continue
      }
      var after = world.model
      for write in outcome.writes { after.write(write.bytes, write.guest) }
      if let wrong = machine.difference(from: after) {
        complaint = "at \(String(wrong.guest, radix: 16)) is \(wrong.real), and not \(wrong.model)"
        continue
      }
      world.model = after
      if outcome.fault != nil { faults += 1 }
      return try check(function, outcome.fault)
    }
    throw ModelFailure(complaint)
  }

  /// A fault was counted and reported once, on the right path; no other function met one, and no other function used
  /// anything.
  private func check(_ function: ModelFunction, _ fault: DMAFault?) throws {
    for other in machine.functions {
      if let wrong = other.complaintOfCounts(expecting: other === function && fault != nil) {
        throw ModelFailure("function \(other.index): \(wrong)")
      }
      if other !== function, case let used = other.ring.takeUsed(), !used.isEmpty {
        throw ModelFailure("function \(other.index) used \(used) unasked")
      }
    }
    let expected = function.shape.translates && fault?.reason != .busMasterDisabled ? fault : nil
    if let wrong = machine.unit?.complaint(expecting: expected, from: function.master.requester) {
      throw ModelFailure(wrong)
    }
  }

  /// Nothing but device areas has changed.
  private func checkMemory() throws {
    if let wrong = machine.difference(from: world.model) {
      throw ModelFailure("at \(String(wrong.guest, radix: 16)) is \(wrong.real), and not \(wrong.model)")
    }
  }

  // MARK: What processors and drivers do

  private func processorWrites() {
    guard let page = world.data.randomElement(using: &random), world.model.region(page << 12) != nil else { return }
    world.write(World.noise(4096, &random), at: page << 12)
  }

  private func changeMapping(_ function: ModelFunction) {
    guard let unit = machine.unit, case .table(let table) = function.view else { return }
    let permissions: [DMAPermissions] = [
      .readWrite, .readWrite, .readWrite, .readWrite, .readWrite, .read, machine.kind == .sun4u ? .read : .write,
    ]
    let isLarge = machine.kind == .vtd && random.chance(1, in: 10)
    let page: UInt64
    var entry: NaiveModel.Entry?
    if isLarge {
      page = VTdModelUnit.large
      let target = world.base >> 12 + (random.chance(1, in: 2) ? 0 : 512)
      entry = NaiveModel.Entry(page: target, permissions: permissions.randomElement(using: &random) ?? .readWrite)
    } else {
      let pages = stride(from: unit.window.lowerBound, through: unit.window.upperBound, by: Int(unit.span)).map(\.self)
      page = pages.randomElement(using: &random) ?? unit.window.lowerBound
      // Sometimes to where no memory is.
      let target = random.chance(1, in: 20) ? world.base >> 12 + 0x100 : world.data.randomElement(using: &random) ?? 0
      entry = NaiveModel.Entry(
        page: target & ~(unit.span - 1), permissions: permissions.randomElement(using: &random) ?? .readWrite)
    }
    if random.chance(1, in: 10) { entry = nil }
    let pages = page...page + (isLarge ? 511 : unit.span - 1)
    if isLarge { machine.setLarge(unit, table, page, entry) } else { machine.set(unit, table, page, entry) }
    let invalidates = random.chance(3, in: 5)
    if invalidates { machine.invalidate(unit, table, pages, &random) }
    let target = entry.map { "\(String($0.page, radix: 16)) with permissions \($0.permissions.rawValue)" } ?? "nothing"
    note("page \(String(page, radix: 16)) of table \(table) is \(target)\(invalidates ? ", invalidated" : "")")
  }

  private func invalidateSome(_ function: ModelFunction) {
    guard let unit = machine.unit, case .table(let table) = function.view else { return }
    var pages = unit.window
    if random.chance(2, in: 3), let open = world.model.tables[table].old.keys.min() {
      pages = open & ~(unit.span - 1)...open | (unit.span - 1)
    }
    machine.invalidate(unit, table, pages, &random)
    note("invalidated \(String(pages.lowerBound, radix: 16)) to \(String(pages.upperBound, radix: 16))")
  }

  private func restart(_ function: ModelFunction) throws {
    note("function \(function.index) is reset")
    if let wrong = function.start() { throw ModelFailure("function \(function.index): \(wrong)") }
    try checkMemory()
  }

  private func resetAlone(_ function: ModelFunction) throws {
    note("function \(function.index) is reset alone")
    machine.resetAlone(function)
    guard !function.function.control.isRunning(0) else {
      throw ModelFailure("function \(function.index) runs on after its reset")
    }
    try checkMemory()
    machine.restore(function)
    try restart(function)
  }

  /// A request that must end the queue: nothing is used, nothing is written, the device asks for a reset.
  private func broken(_ function: ModelFunction, _ chain: [LiteralDescriptor], _ fault: DMAFault?) throws {
    _ = function.ring.post(chain)
    function.ring.publish()
    function.adoptRing()
    function.notify()
    var used: [LiteralUsed] = []
    guard
      machine.platform.wait(
        function.index,
        {
          used += function.ring.takeUsed()
          return !used.isEmpty || function.needsReset
        })
    else { throw ModelFailure("function \(function.index) hangs") }
    guard used.isEmpty, function.device.takeSeen().isEmpty else {
      throw ModelFailure("function \(function.index) used \(used) all the same")
    }
    try checkMemory()
    try check(function, fault)
  }

  private var aChain: [LiteralDescriptor] {
    [LiteralDescriptor(DMAAddress(world.base), 8), LiteralDescriptor(DMAAddress(world.base), 8, writable: true)]
  }

  private func closeGate(_ function: ModelFunction) throws {
    note("function \(function.index) is no bus master")
    function.setBusMaster(false)
    try broken(
      function, aChain,
      DMAFault(address: function.ring.layout.descriptorArea, access: .read, reason: .busMasterDisabled))
    function.setBusMaster(true)
    try restart(function)
  }

  private func takeRing(_ function: ModelFunction) throws {
    guard let unit = machine.unit, case .table = function.view else { return }
    note("the ring of function \(function.index) is unmapped")
    machine.mapControl(function, unit, present: false, &random)
    try broken(
      function, aChain, DMAFault(address: function.ring.layout.descriptorArea, access: .read, reason: .unmapped))
    machine.mapControl(function, unit, present: true, &random)
    try restart(function)
  }

  private func breakRule(_ function: ModelFunction) throws {
    note("function \(function.index) is given a readable piece after a writable one")
    let piece = LiteralDescriptor(DMAAddress(0), 0)
    try broken(function, [LiteralDescriptor(DMAAddress(0), 0, writable: true), piece], nil)
    try restart(function)
  }

  private func replug(_ function: ModelFunction) throws {
    note("function \(function.index) is replaced by another")
    machine.bus.remove(function.function)
    // Code that still holds it cannot start it again.
    function.function.control.kick(0)
    try checkMemory()
    // Faults are not counted here: a queue that was just started may look up its ring only now, without success, and
    // that is not reported.
    if let wrong = function.complaintOfPath()
      ?? machine.unit?.complaint(expecting: nil, from: function.master.requester)
    {
      throw ModelFailure(wrong)
    }
    try machine.plug(function.index, &random)
    try checkMemory()
  }
}
