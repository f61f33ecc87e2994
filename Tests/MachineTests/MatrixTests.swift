import DeviceCatalog
import Testing
import Virtio

@testable import Machine

@Suite("The truth table", .serialized, .timeLimit(.minutes(10))) struct MatrixTests {
  @Test(
    "Every cell of a platform is as the table says (R004, R005, R006, R008, R009, R011, R019, R023, R025, R033, R034, R080, R171, R172, R173, R174)",
    arguments: Platform.all.map(\.name))
  func cells(_ name: String) throws {
    let platform = try #require(Platform.named(name))
    // Every decision, each with one ring and one kind of descriptors in turn; `sluice matrix` runs all of them, in CI
    // too.
    var turn: [Decision: Int] = [:]
    let cells = Matrix.cells(of: platform).filter { cell in
      guard let data = cell.data, let ring = data.ring else { return true }
      let choice = turn[cell.decision] ?? turn.count % 4
      turn[cell.decision] = choice
      return (ring == .packed) == (choice & 1 == 1) && (data.descriptors == .indirect) == (choice & 2 == 2)
    }
    let results = Matrix.run(cells)
    for result in results {
      if case .failed(let why) = result.verdict {
        Issue.record("\(result.cell.name): \(why)\n\(result.story.joined(separator: "\n"))")
      }
    }
    #expect(results.contains { $0.verdict == .passed })
  }

  @Test("A guest that forgets it is a Xen guest is found out")
  func forgetful() {
    var platform = Platform.xenPV
    platform.isXen = false
    let cells = Matrix.cells(of: platform).filter {
      $0.decision.host == .old && $0.decision.interface == .modern && $0.decision.acknowledgement == .all
    }
    let failed = Matrix.run(cells).filter { if case .failed = $0.verdict { true } else { false } }
    #expect(failed.contains { $0.cell.data?.shape == .contiguous })
  }

  @Test("A path that is not the one of the table is found out, though the bytes arrive")
  func detour() {
    // Nothing translates, so physical memory is reached on either path: only the record tells them apart.
    var platform = Platform.pc
    platform.devicesAreHardware = true
    let right = Matrix.cells(of: platform).filter {
      $0.decision.host == .old && $0.decision.interface == .modern && $0.data?.shape == .contiguous
    }
    #expect(!right.isEmpty)
    // The machine is made from one platform, and judged by another.
    for cell in right {
      var judged = cell
      judged.decision.platform.devicesAreHardware = false
      #expect(cell.expected == .data(.platform) && judged.expected == .data(.physical))
      let result = judged.run(on: platform)
      guard case .failed(let why) = result.verdict else {
        Issue.record("\(judged.name) passed")
        continue
      }
      #expect(why.contains("another path"))
    }
  }

  @Test("Every cell has a name of its own, and is found by it")
  func names() {
    let cells = Matrix.cells(of: .pcVTd)
    #expect(Set(cells.map(\.name)).count == cells.count)
    for cell in cells.prefix(50) { #expect(Matrix.cell(named: cell.name) == cell) }
    #expect(Matrix.cell(named: "pc-vtd/none/such") == nil)
  }

  @Test("What cannot be has a reason, and what can has reasons too")
  func reasons() {
    for cell in Platform.all.flatMap(Matrix.cells) {
      #expect(!cell.reasons.isEmpty && cell.reasons.allSatisfy { !$0.isEmpty })
    }
  }
}

@Suite("Machines", .timeLimit(.minutes(10))) struct MachineTests {
  @Test("The embedded machine runs, each device by its own path")
  func embedded() throws {
    let reports = try MachineDescription.embedded.run()
    #expect(reports.map(\.path) == [.platform, .physical, .platform, .platform])
    for report in reports { #expect(report.isGood, "\(report.work.device): \(report.work.error ?? "")") }
  }

  @Test("Every platform runs every workload", arguments: Platform.all.map(\.name), Workload.Kind.allCases)
  func workloads(_ name: String, _ kind: Workload.Kind) throws {
    let platform = try #require(Platform.named(name))
    var disk = DeviceDescription(name: "disk", kind: .block)
    (disk.property, disk.state) = (.on, platform.describesIOMMU ? .attached : .none)
    var workload = Workload()
    (workload.kind, workload.requests, workload.seconds) = (kind, 20, 20)
    let reports = try MachineDescription(platform: platform, devices: [disk], workload: workload).run()
    #expect(reports.count == 1)
    for report in reports { #expect(report.isGood && report.path == .platform, "\(report.work.error ?? "")") }
  }
}
