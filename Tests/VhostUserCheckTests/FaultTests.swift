import DMA
import Examination
import HostIO
import Synchronization
import Testing
import VhostUser
import VhostUserCheck
import Virtio
import VirtioBlock
import VirtioEntropy
import VirtioTestKit

@Suite("A check can fail", .timeLimit(.minutes(10))) struct FaultTests {
  @Test("A back-end that behaves badly is found out", arguments: Flaw.all)
  func found(flaw: Flaw) throws {
    let disk = try ServedDisk()
    let subject = TwistedSubject(
      disk.served.path, wire: flaw.wire, channel: flaw.channel, injected: flaw.injected, flaw.twist)
    // Waiting for what never comes is the point of some of these.
    let patience: Duration = flaw.verdict == .wedged || flaw.verdict == nil ? .milliseconds(400) : .seconds(20)
    for name in flaw.checks {
      subject.memory.withLock { $0 = [:] }
      let (results, summary) = try results(subject, .block, only: [name], patience: patience)
      let result = try #require(results[name])
      #expect(
        flaw.verdict.map { $0 == result.verdict } ?? result.verdict.isFault,
        "\(name): \(result.verdict.rawValue): \(result.evidence)")
      #expect(!summary.isClean)
    }
  }

  @Test("A driver that breaks its ring is no reason to die, to go or to sulk", arguments: PickyDevice.Temper.allCases)
  func picky(temper: PickyDevice.Temper) throws {
    let device = PickyDevice(temper)
    let served = try ServedDevice(device.device)
    let subject = TwistedSubject(served.path, { _ in .pass })
    device.outcry.withLock {
      $0 = { [weak subject] in if temper == .dies { subject?.die() } else if temper == .closes { subject?.closeAll() } }
    }
    subject.onConnect.withLock {
      $0 = { [weak device] in device?.sulks.store(false, ordering: .sequentiallyConsistent) }
    }
    let names = Self.brokenRings
    let (results, _) = try results(
      subject, .block, only: names + ["split"], patience: temper == .sulks ? .milliseconds(250) : .seconds(20))
    let verdict: Verdict =
      switch temper {
      case .dies: .crashed
      case .closes: .broken
      case .sulks: .wedged
      }
    for name in names {
      var result = try #require(results[name], "\(name) is missing")
      // On a busy machine the ring may be set up again before the device has read the part that is wrong.
      for _ in 0..<3 where result.verdict == .kept {
        result = try #require(
          try VhostUserCheckTests.results(subject, .block, only: [name], patience: .seconds(1)).0[name])
      }
      #expect(result.verdict == verdict, "\(name): \(result.verdict.rawValue): \(result.evidence)")
    }
    #expect(results["split"]?.verdict == .kept)
  }

  /// The checks of rings that a driver broke.
  private static var brokenRings: [String] {
    CheckRun.all.filter { $0.sentence.hasSuffix("the ring works when it is set up again.") }.map(\.name)
  }

  @Test("Every check is broken by some flaw")
  func complete() {
    let found = Set(Flaw.all.flatMap(\.checks) + Self.brokenRings + ["in-order"])
    let all = Set(CheckRun.all.map(\.name))
    #expect(all.subtracting(found).isEmpty, "nothing shows that these can fail: \(all.subtracting(found).sorted())")
    #expect(found.subtracting(all).isEmpty, "there are no such checks: \(found.subtracting(all).sorted())")
    #expect(Self.brokenRings.count > 25)
  }

  @Test("A proxy between both ends that changes nothing changes no verdict")
  func honest() throws {
    let disk = try ServedDisk()
    let (results, _) = try results(TwistedSubject(disk.served.path, channel: { _ in .pass }, { _ in .pass }), .block)
    for result in results.values { #expect(result.verdict == .kept, "\(result.name): \(result.evidence)") }
  }

  /// Gives four requests back in an order that no batches explain.
  private final class Backwards: VirtioDevice {
    var id: DeviceID { .entropy }
    var features: Features { .ring }
    var maxQueueSizes: [UInt16] { [256] }
    func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
      Handler()
    }

    private final class Handler: QueueHandler {
      private var kept = SlotTable<DescriptorChain>(capacity: 256)
      private var tags: [Int] = []

      func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
        while let chain = try queues[index].next() { tags.append(kept.insert(chain)) }
        // Backwards alone would pass for one batch, of which the last entry stands for all.
        let order = tags.count == 4 ? [2, 0, 3, 1] : Array(tags.indices)
        for place in order {
          guard let chain = kept.remove(tags[place]) else { continue }
          _ = chain.writable.zero(from: 0, count: chain.writable.byteCount)
          queues[index].complete(chain, written: 512)
        }
        tags = []
      }
    }
  }

  @Test("A device that says it keeps the order, and does not, is found out")
  func backwards() throws {
    let served = try ServedDevice(Backwards())
    // The device's side of the ring would put it right: it does not get the promise.
    let forgets: MessageFault = {
      if $0.asks(.setFeatures) { $0[0] &= ~(1 << 35) }
      return .pass
    }
    let subject = TwistedSubject(served.path, forgets)
    let (results, _) = try results(subject, .entropy, only: ["in-order", "split"], patience: .seconds(2))
    #expect(results["in-order"]?.verdict.isFault == true, "\(results["in-order"]?.evidence ?? "")")
    #expect(results["split"]?.verdict == .kept)
  }

  /// Ends its back-end when the named check has come so far as to connect.
  private final class Mortal: CheckSubject {
    private let served: ServedDevice
    private var connections = 0
    private let limit: Int
    init(_ served: ServedDevice, dyingAt limit: Int) {
      self.served = served
      self.limit = limit
    }
    var life: BackendLife { connections > limit ? .killed(11) : .running }
    func renew() -> Bool {
      connections = 0
      return true
    }
    func connect(timeout: Duration) throws(HostError) -> UnixSocket {
      connections += 1
      if connections > limit { throw HostError("connect", errno: .connectionRefused) }
      return try UnixSocket.connect(to: served.path, timeout: timeout)
    }
  }

  @Test("A back-end that dies is said to have crashed, and the next check gets a new one")
  func crash() throws {
    let disk = try ServedDisk()
    // Survey, its aftermath, a check and its aftermath; the next check's connection kills it.
    let (results, summary) = try results(
      Mortal(disk.served, dyingAt: 4), .block, only: ["split", "indirect", "packed"])
    #expect(results["split"]?.verdict == .kept)
    #expect(results["indirect"]?.verdict == .crashed)
    #expect(results["indirect"]?.evidence.hasPrefix("SIGSEGV killed it") == true)
    #expect(results["packed"]?.verdict == .kept)
    #expect(!summary.isClean && summary.left == 0)
  }

  @Test("A device that writes nothing is found out")
  func idle() throws {
    let served = try ServedDevice(TestDevice { _ in 512 })
    let (results, _) = try results(SocketSubject(path: served.path), .entropy, only: ["split", "invalidate"])
    #expect(results["split"]?.verdict == .broken)
    #expect(results["split"]?.evidence == "nothing was written")
    #expect(results["invalidate"]?.verdict == .broken)
  }

  @Test("A result and a summary are a line of JSON each, and a line for people")
  func report() throws {
    let disk = try ServedDisk()
    let run = try CheckRun(SocketSubject(path: disk.served.path), .block, only: ["split"])
    var lines: [CheckResult] = []
    let summary = try run.run { lines.append($0) }
    let line = try #require(lines.first)
    #expect(
      line.json.hasPrefix(
        #"{"check":"split","rule":"split","says":"A request over a split ring is served.","verdict":"kept","evidence":"three requests were served","milliseconds":"#
      ))
    #expect(line.line.hasPrefix("kept ") && line.line.hasSuffix("three requests were served"))
    let json = summary.json(device: .block, features: run.offer.features, protocolFeatures: run.offer.protocolFeatures)
    #expect(json.hasPrefix(#"{"summary":"blk","features":["#) && json.contains(#""kept":1,"broken":0"#))
    #expect(summary.line.hasPrefix("1 kept in "))
  }
}
