import Glibc
import Testing
import Virtio
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite("virtio-blk: an image that is handed over", .timeLimit(.minutes(10))) struct SharedImageTests {
  private func device(
    _ file: ScratchFile, _ lock: DiskLock, _ engine: EngineKind, queues: Int = 1
  ) throws -> BlockDevice {
    try engine.device(file) {
      $0.lock = lock
      $0.queueCount = queues
    }
  }

  @Test(
    "With lock: running two devices are there, and the second starts once the first has stopped",
    arguments: EngineKind.buffered)
  func handedOver(engine: EngineKind) throws {
    let file = try ScratchFile(size: 1 << 20)
    let source = try device(file, .running, engine)
    let destination = try device(file, .running, engine)
    var rig: DeviceRig? = try DeviceRig(source)
    #expect(try rig?.writeDisk(8, pattern(4096)).status == 0)
    do {
      _ = try DeviceRig(destination)
      Issue.record("two writers on one image")
    } catch let error as DeviceError {
      #expect(error.description.contains("in use by another process"))
    }
    #expect(try rig?.writeDisk(16, pattern(4096, seed: 2)).status == 0, "the holder of the lock is not disturbed")
    rig = nil
    let successor = try DeviceRig(destination)
    #expect(try successor.readDisk(8, 4096).data == pattern(4096))
    #expect(try successor.writeDisk(8, pattern(4096, seed: 3)).status == 0)
    #expect(throws: DeviceError.self) { _ = try DeviceRig(source) }
    #expect(try successor.readDisk(8, 4096).data == pattern(4096, seed: 3))
  }

  @Test("The lock stays until the last of several queues has stopped")
  func severalQueues() throws {
    let file = try ScratchFile(size: 1 << 20)
    let source = try device(file, .running, EngineKind.buffered[0], queues: 2)
    let destination = try device(file, .running, EngineKind.buffered[0])
    var first: DeviceRig? = try DeviceRig(source, queue: 0)
    let second = try DeviceRig(source, queue: 1)
    #expect(try first?.writeDisk(8, pattern(4096)).status == 0)
    first = nil
    #expect(throws: DeviceError.self) { _ = try DeviceRig(destination) }
    #expect(try second.readDisk(8, 4096).data == pattern(4096))
  }

  @Test("A device that locks always keeps one that locks while it runs from starting, and the other way round")
  func mixed() throws {
    let file = try ScratchFile(size: 1 << 20)
    let running = try device(file, .running, EngineKind.buffered[0])
    var always: BlockDevice? = try device(file, .always, EngineKind.buffered[0])
    #expect(throws: DeviceError.self) { _ = try DeviceRig(running) }
    #expect(always?.byteCount == 1 << 20)
    always = nil
    let rig = try DeviceRig(running)
    #expect(throws: DiskError.self) { _ = try device(file, .always, EngineKind.buffered[0]) }
    #expect(try rig.writeDisk(8, pattern(4096)).status == 0)
  }
}
