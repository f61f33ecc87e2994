import DMA
import HostIO
import PCI
import Synchronization
import Testing

@testable import VfioUser

/// A function with doorbells, which remembers what was written where.
private final class Recorder: DoorbellFunction {
  let configuration: ConfigurationSpace
  let doorbells: DoorbellArea? = DoorbellArea(bar: 0, offset: 0x1000, count: 4)
  private let writes = Mutex<[UInt64]>([])

  init() {
    var layout = ConfigurationLayout(
      PCIIdentity(
        vendorID: 0x1234, deviceID: 1, revisionID: 0, classCode: 0xff_00_00, subsystemVendorID: 0, subsystemID: 0))
    layout.add(BAR(index: 0, kind: .memory32, size: 0x2000))
    configuration = ConfigurationSpace(layout)
  }

  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64 { 0 }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64) { writes.withLock { $0.append(offset) } }
  func reset() { writes.withLock { $0.append(.max) } }
  func take() -> [UInt64] {
    writes.withLock { writes in
      defer { writes = [] }
      return writes
    }
  }
}

@Suite("Doorbells in memory beside messages", .timeLimit(.minutes(10))) struct OrderTests {
  @Test("A doorbell that was left before a register is written, or the device reset, is brought before; once")
  func messages() throws {
    let recorder = Recorder()
    let hosted = try HostedFunction(doorbells: .shared) { _ in recorder }
    let area = try #require(hosted.doorbells(in: 0))
    let page = try hosted.shareDoorbells(area)
    defer { hosted.endDoorbells() }
    let client = try MappedDoorbells(
      bar: 0, RegionInfo(index: 0), SparseMap(offset: area.offset, size: area.byteCount),
      FileDescriptor.duplicating(page.descriptor))
    _ = recorder.take()
    for _ in 0..<2000 {
      #expect(client.store(0, 0x1008, 4, 7))
      #expect(hosted.write(0, at: 0x14, [0, 0, 0, 0]))
      #expect(client.store(0, 0x1004, 4, 7))
      hosted.reset()
      #expect(recorder.take() == [0x1008, 0x14, 0x1004, .max])
    }
    hosted.endDoorbells()
    #expect(client.store(0, 0x1004, 4, 7) && hosted.write(0, at: 0x14, [0, 0, 0, 0]))
    #expect(recorder.take() == [0x14])
  }
}
