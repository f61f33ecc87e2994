import Testing
import VirtioTestKit

@testable import Virtio

/// Queues whose buffers wait for something to say.
@Suite("Queues that rest until there is work") struct RestTests {
  /// Completes a buffer for each event, and rests when there is none.
  private final class Events: QueueHandler {
    private var waiting = 0
    func ready(_ token: UInt64, in queues: inout QueueSet) throws(QueueError) { waiting += Int(token) }
    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while waiting > 0, let chain = try queues[index].next() {
        queues[index].complete(chain, written: 1)
        waiting -= 1
      }
      if waiting == 0 { queues[index].rest() }
    }
  }

  @Test(
    "A queue at rest leaves buffers alone and sleeps, takes as many as there is something to say, and is kicked for more once it has none",
    arguments: RingCase.matrix)
  func rests(_ kind: RingCase) throws {
    let rig = try RingRig(kind)
    let handler = Events()
    let harness = DeviceHarness(handler, device: EchoDevice(), features: kind.features, in: rig.space)
    try harness.start(0, rig.layout)
    for lap in 0..<20 {
      let fresh = rig.ring.free
      for _ in 0..<fresh { _ = rig.ring.post([LiteralDescriptor(rig.data, 1, writable: true)]) }
      rig.ring.publish()
      let before = harness.rounds
      harness.kick(0)
      harness.kick(0)
      #expect(harness.rounds == before + 2, "lap \(lap): a round a kick")
      #expect(rig.ring.takeUsed().isEmpty && harness.inFlight == 0)
      let count = 1 + lap % fresh
      harness.ready(UInt64(count))
      #expect(rig.ring.takeUsed().count == count && !harness.hasFailed(0), "lap \(lap)")
    }
    // More events than buffers: it waits for buffers then, and does not rest.
    while rig.ring.free > 0 { _ = rig.ring.post([LiteralDescriptor(rig.data, 1, writable: true)]) }
    rig.ring.publish()
    harness.ready(1000)
    #expect(!rig.ring.takeUsed().isEmpty)
    _ = rig.ring.post([LiteralDescriptor(rig.data, 1, writable: true)])
    #expect(rig.ring.publish(), "it wants to hear of new buffers")
    harness.kick(0)
    #expect(rig.ring.takeUsed().count == 1)
  }
}
