import DMA
import HostIO
import Synchronization
import Testing
import VhostUser
import VhostUserCheck
import Virtio

/// A fault, the checks that have to find it, and what they have to say.
struct Fault: Sendable, CustomTestStringConvertible {
  var name: String
  var checks: [String]
  var verdict: Verdict = .broken
  var doublesMisses = false
  var twist: Twist = { _, _, _ in .pass }
  var testDescription: String { name }
}

private typealias Kind = FrontendRequest.Kind

private func word(_ bytes: [UInt8], at offset: Int = 0) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << (8 * UInt64($1)) } }
private func bytes(_ word: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64($0))) } }
private let success = bytes(0)

/// An IOTLB message of the front-end is an INVALIDATE.
private func isInvalidate(_ request: UInt32, _ payload: [UInt8], _ fromFrontend: Bool) -> Bool {
  fromFrontend && request == Kind.iotlb.rawValue && payload.count >= 26 && payload[25] == IOTLBMessage.Kind.invalidate.rawValue
}

/// Says yes once for each page above those that rings and buffers of a disk are on.
private final class Unasked: Sendable {
  private let seen = Mutex<Set<UInt64>>([])
  func take(_ page: UInt64) -> Bool { page > 0xffc0_a000 && seen.withLock { $0.insert(page).inserted } }
}
private let unasked = Unasked()

private let faults: [Fault] = [
  Fault(name: "takes no notice of invalidations", checks: ["invalidate", "invalidate-garbage", "invalidate-all", "invalidate-lazy", "invalidate-part", "unmap-in-flight"]) {
    isInvalidate($0, $1, $2) ? .swallow(answer: success) : .pass
  },
  Fault(name: "takes a range that ends at 2^64 for an empty one", checks: ["invalidate-lazy"]) { request, payload, fromFrontend in
    guard isInvalidate(request, payload, fromFrontend) else { return .pass }
    return word(payload) &+ word(payload, at: 8) < word(payload) || word(payload) != 0 && word(payload) &+ word(payload, at: 8) == 0
      ? .swallow(answer: success) : .pass
  },
  Fault(name: "takes size 0 for an empty range", checks: ["invalidate-all"]) { request, payload, fromFrontend in
    isInvalidate(request, payload, fromFrontend) && word(payload, at: 8) == 0 ? .swallow(answer: success) : .pass
  },
  Fault(name: "does not acknowledge invalidations", checks: ["invalidate", "invalidate-while-held"], verdict: .wedged) {
    isInvalidate($0, $1, $2) ? .swallow(answer: nil) : .pass
  },
  Fault(name: "asks for everything twice", checks: ["asked-once"], doublesMisses: true),
  Fault(name: "writes where it may only read", checks: ["read-only-entry"]) { request, payload, fromFrontend in
    if fromFrontend, request == Kind.iotlb.rawValue, payload.count >= 26, payload[25] == IOTLBMessage.Kind.update.rawValue { payload[24] = 3 }
    return .pass
  },
  Fault(name: "forgets translations that nobody asked for", checks: ["unsolicited"]) { request, payload, fromFrontend in
    guard fromFrontend, request == Kind.iotlb.rawValue, payload.count >= 26, payload[25] == IOTLBMessage.Kind.update.rawValue else { return .pass }
    // Only what comes before it is asked for: the answers to misses are for pages below.
    return unasked.take(word(payload)) ? .swallow(answer: success) : .pass
  },
  Fault(name: "says yes to everything", checks: ["update-outside", "update-empty", "update-wraps", "unknown-request", "unknown-region", "short-payload", "regions-overlap", "region-without-file"]) { request, payload, fromFrontend in
    if !fromFrontend, payload == bytes(1), request != Kind.getQueueCount.rawValue { payload = success }
    return .pass
  },
  Fault(name: "offers something else every time", checks: ["features-stable"]) { request, payload, fromFrontend in
    if !fromFrontend, request == Kind.getFeatures.rawValue { payload[5] ^= UInt8.random(in: 1...127) }
    return .pass
  },
  Fault(name: "offers bit 33 without a channel to ask on", checks: ["platform-channel"]) { request, payload, fromFrontend in
    if !fromFrontend, request == Kind.getProtocolFeatures.rawValue { payload[0] &= ~0x20 }
    return .pass
  },
  Fault(name: "acknowledges without being asked", checks: ["unacknowledged"]) { request, payload, fromFrontend in
    guard fromFrontend, request == Kind.setVringCall.rawValue else { return .pass }
    return .swallow(answer: success)
  },
  Fault(name: "miscounts", checks: ["position", "position-packed"]) { request, payload, fromFrontend in
    if !fromFrontend, request == Kind.getVringBase.rawValue { payload[4] &+= 1 }
    return .pass
  },
  Fault(name: "only says that it stopped", checks: ["stopped"]) { request, payload, fromFrontend in
    fromFrontend && request == Kind.getVringBase.rawValue ? .swallow(answer: Array(payload[..<4]) + [1, 0, 0, 0]) : .pass
  },
  Fault(name: "goes on with disabled rings", checks: ["disabled"]) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setVringEnable.rawValue && payload[4] == 0 ? .swallow(answer: success) : .pass
  },
  Fault(name: "logs nothing", checks: ["log", "log-translated", "log-switched"]) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setLogBase.rawValue ? .swallow(answer: success) : .pass
  },
  Fault(name: "keeps no record of what is in flight", checks: ["inflight"]) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setInflightDescriptor.rawValue ? .swallow(answer: success) : .pass
  },
  Fault(name: "never calls", checks: ["call"], verdict: .wedged) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setVringCall.rawValue ? .swallow(answer: success) : .pass
  },
  Fault(name: "starts no ring", checks: ["split", "lap", "translated"], verdict: .wedged) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setVringKick.rawValue ? .swallow(answer: success) : .pass
  },
  Fault(name: "reads the configuration from its start only", checks: ["configuration"]) { request, payload, fromFrontend in
    if !fromFrontend, request == Kind.getConfiguration.rawValue, payload.count >= 12 { payload.replaceSubrange(12..., with: [UInt8](repeating: 7, count: payload.count - 12).enumerated().map { UInt8(truncatingIfNeeded: $0.offset) }) }
    return .pass
  },
  Fault(name: "answers a reset and does nothing", checks: ["status-reset"]) { request, payload, fromFrontend in
    fromFrontend && request == Kind.setStatus.rawValue && payload[0] == 0 ? .swallow(answer: success) : .pass
  },
]

@Suite("A check can fail", .timeLimit(.minutes(10)))
struct FaultTests {
  @Test("A back-end that behaves badly is found out", arguments: faults)
  fileprivate func found(fault: Fault) throws {
    let disk = try ServedDisk()
    let subject = TwistedSubject(disk.served.path, doublesMisses: fault.doublesMisses, fault.twist)
    // Waiting for what never comes is the point of some of these.
    let (results, summary) = try results(subject, .blk, only: fault.checks, patience: fault.verdict == .wedged ? .seconds(1) : .seconds(20))
    for name in fault.checks {
      #expect(results[name]?.verdict == fault.verdict, "\(name): \(results[name].map { "\($0.verdict.rawValue): \($0.evidence)" } ?? "missing")")
    }
    #expect(!summary.isClean)
  }

  @Test("Somebody between both ends who changes nothing changes no verdict")
  func honest() throws {
    let disk = try ServedDisk()
    let (results, _) = try results(TwistedSubject(disk.served.path), .blk, only: Array(Set(faults.flatMap(\.checks))))
    for result in results.values { #expect(result.verdict == .kept, "\(result.name): \(result.evidence)") }
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
      if connections > limit { throw HostError("connect", errno: 111) }
      return try UnixSocket.connect(to: served.path, timeout: timeout)
    }
  }

  @Test("A back-end that dies is said to have crashed, and the next check gets a new one")
  func crash() throws {
    let disk = try ServedDisk()
    // Survey, its aftermath, a check and its aftermath; the next check's connection kills it.
    let (results, summary) = try results(Mortal(disk.served, dyingAt: 4), .blk, only: ["split", "indirect", "packed"])
    #expect(results["split"]?.verdict == .kept)
    #expect(results["indirect"]?.verdict == .crashed)
    #expect(results["indirect"]?.evidence.hasPrefix("signal 11 killed it") == true)
    #expect(results["packed"]?.verdict == .kept)
    #expect(!summary.isClean && summary.left == 0)
  }

  /// A device that says it wrote, and did not.
  private final class Idle: VirtioDevice {
    var id: DeviceID { .entropy }
    var features: Features { .ring }
    var maxQueueSizes: [UInt16] { [256] }
    func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler { Handler() }

    private final class Handler: QueueHandler {
      func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
        while let chain = try queues[index].next() { queues[index].complete(chain, written: 512) }
      }
    }
  }

  @Test("A device that writes nothing is found out")
  func idle() throws {
    let served = try ServedDevice(Idle())
    let (results, _) = try results(SocketSubject(path: served.path), .rng, only: ["split", "invalidate"])
    #expect(results["split"]?.verdict == .broken)
    #expect(results["split"]?.evidence == "nothing was written")
    #expect(results["invalidate"]?.verdict == .broken)
  }

  @Test("A result and a summary are a line of JSON each, and a line for people")
  func report() throws {
    let disk = try ServedDisk()
    let run = try CheckRun(SocketSubject(path: disk.served.path), .blk, only: ["split"])
    var lines: [CheckResult] = []
    let summary = try run.run { lines.append($0) }
    let line = try #require(lines.first)
    #expect(line.json.hasPrefix(#"{"check":"split","rule":"split","says":"A request over a split ring is served.","verdict":"kept","evidence":"three requests were served","milliseconds":"#))
    #expect(line.line.hasPrefix("kept ") && line.line.hasSuffix("three requests were served"))
    let json = summary.json(device: .blk, features: run.offer.features, protocolFeatures: run.offer.protocolFeatures)
    #expect(json.hasPrefix(#"{"summary":"blk","features":["#) && json.contains(#""kept":1,"broken":0"#))
    #expect(summary.line.hasPrefix("1 kept in "))
  }
}
