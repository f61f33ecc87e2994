import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import PCI
import Synchronization
import Virtio
import VirtioDrivers
import VirtioTestKit

/// What a driver's thread and its watcher say to each other.
final class DriverSignals: Sendable {
  let stops = Atomic<Bool>(false)
  /// Batches that came back.
  let batches = Atomic<Int>(0)
  let needsReset = Atomic<Bool>(false)
  let ended = Atomic<Bool>(false)
  let trouble = Mutex<String?>(nil)
  var hasStopped: Bool { ended.load(ordering: .acquiring) }
}

/// A driver on a thread of its own: as many requests as its ring holds, again and again, all over the memory it is
/// given.
struct ConcurrentDriver: Sendable {
  let bus: PCIBus
  let memory: GuestMemory
  let platform: ModelPlatform
  let requester: RequesterID
  let windows: [BARWindow]
  let index: Int
  let shape: FunctionShape
  let control: UInt64
  /// Device pages that requests name.
  let pages: [UInt64]
  let seed: UInt64
  let signals = DriverSignals()

  /// The thread's work: from a reset to the word to stop.
  func run() {
    do { try drive() } catch { signals.trouble.withLock { $0 = "\(error)" } }
    signals.ended.store(true, ordering: .releasing)
    platform.wake(ModelPlatform.watcher)
  }

  private var isStopping: Bool { signals.stops.load(ordering: .acquiring) }

  private func drive() throws {
    let transport = try PCIDriverTransport(PCIBusAccess(bus, requester, windows))
    transport.status = []
    transport.status = [.acknowledge, .driver]
    transport.accept(shape.features)
    transport.status = [.acknowledge, .driver, .featuresOK]
    guard transport.status.contains(.featuresOK) else { throw ModelFailure("features are refused") }
    _ = transport.enableMSIX(Array(repeating: InterruptMessage(address: 0xfee0_0000, data: UInt32(index)), count: 2))
    _ = transport.setConfigurationVector(0)
    _ = transport.setVector(1, ofQueue: 0)
    let ring = makeLiteralRing(
      ModelFunction.layout(control, shape), features: shape.features, in: ModelFunction.literal(memory, control, index))
    transport.enableQueue(0, ring.layout)
    transport.status = [.acknowledge, .driver, .featuresOK, .driverOK]
    var random = SeededGenerator(seed)
    while !isStopping {
      ring.wantCalls()
      var inFlight = 0
      while ring.free >= 2 {
        _ = ring.post([piece(false, &random), piece(true, &random)])
        inFlight += 1
      }
      ring.publish()
      transport.notify(0, data: 0)
      let isBack = platform.wait(index) {
        inFlight -= ring.takeUsed().count
        if inFlight > 0, !isStopping, transport.status.contains(.needsReset) {
          signals.needsReset.store(true, ordering: .releasing)
        }
        // A broken device sends nothing more: its driver waits for an interrupt.
        return inFlight <= 0 || isStopping
      }
      guard isBack else { throw ModelFailure("\(inFlight) requests of function \(index) do not come back") }
      signals.batches.add(1, ordering: .releasing)
      platform.wake(ModelPlatform.watcher)
    }
  }

  private func piece(_ isWritable: Bool, _ random: inout SeededGenerator) -> LiteralDescriptor {
    let page = pages.randomElement(using: &random) ?? 0
    let from = Int.random(in: 0..<4096, using: &random)
    return LiteralDescriptor(
      DMAAddress(page << 12 | UInt64(from)), UInt32(Int.random(in: 1...4096 - from, using: &random)),
      writable: isWritable)
  }
}
