import Examination
import Synchronization
import Testing
import VhostUser
import VhostUserCheck

/// A flaw of a back-end, and the checks that have to find it.
struct Flaw: Sendable, CustomTestStringConvertible {
  var name: String
  var checks: [String]
  /// The expected result; nil where it depends on the order.
  var verdict: Verdict? = .broken
  var wire = Wire.well
  var channel: MessageFault?
  var injected: [IOTLBMessage] = []
  var twist: MessageFault = { _ in .pass }
  var testDescription: String { name }

  init(
    name: String, checks: [String], verdict: Verdict? = .broken, wire: Wire = .well, injected: [IOTLBMessage] = [],
    twist: @escaping MessageFault = { _ in .pass }
  ) {
    self.name = name
    self.checks = checks
    self.verdict = verdict
    self.wire = wire
    self.injected = injected
    self.twist = twist
  }

  /// With something in the back-end's own channel. The label keeps a closure behind the call from meaning the channel.
  init(
    asking name: String, checks: [String], verdict: Verdict? = .broken, channel: @escaping MessageFault,
    twist: @escaping MessageFault = { _ in .pass }
  ) {
    self.init(name: name, checks: checks, verdict: verdict, twist: twist)
    self.channel = channel
  }
}

let firstGuest: UInt64 = 0x4000_0000
let guestBytes: UInt64 = 8 << 20
let region = FrontendRequest.Kind.addMemoryRegion
/// Where a region's fields are in ADD_MEM_REG: behind eight bytes of padding.
enum RegionField { static let guest = 8, user = 24, offset = 32 }

/// A translation that a back-end made up: the device address taken for a guest address.
func asGuestAddress(_ letter: inout InterceptedMessage) {
  guard letter[0] >= firstGuest, letter[0] < firstGuest + guestBytes,
    let base = letter.connection.subject.memory.withLock({ $0[0] })
  else { return }
  letter[16] = base + letter[0] - firstGuest
}
func noteMemory(_ letter: InterceptedMessage) {
  if letter.asks(region), letter[RegionField.guest] == firstGuest {
    letter.connection.subject.memory.withLock { $0[0] = letter[RegionField.user] }
  }
}

extension Flaw {
  /// Flaws in how messages are taken.
  static let ofMessages: [Flaw] = [
    Flaw(name: "offers something else every time", checks: ["features-stable"]) {
      if $0.answers(.getFeatures) { $0.payload[5] ^= UInt8.random(in: 1...127) }
      return .pass
    },
    Flaw(name: "offers no VERSION_1", checks: ["version-1"]) {
      if $0.answers(.getFeatures) { $0.payload[4] &= ~1 }
      return .pass
    },
    Flaw(name: "offers bit 33 without a channel to ask on", checks: ["platform-channel"]) {
      if $0.answers(.getProtocolFeatures) { $0.payload[0] &= ~0x20 }
      return .pass
    },
    Flaw(name: "takes features that it did not offer, and goes", checks: ["feature-not-offered"]) {
      if $0.asks(.setFeatures), $0[0] & (UInt64(0x7f) << 50 | 1 << 42 | 1 << 41) != 0 {
        $0.connection.mark("wrong")
        return .success
      }
      return $0.fromFrontend && $0.connection.has("wrong") ? .close : .pass
    },
    Flaw(name: "takes what was offered and nothing else", checks: ["features-forwarded"]) {
      $0.asks(.setFeatures) && $0[0] & (1 << 24 | 1 << 27) != 0 ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
    },
    Flaw(name: "offers to reset single rings", checks: ["ring-reset"]) {
      if $0.answers(.getFeatures) { $0.payload[5] |= 1 }
      return .pass
    },
    Flaw(name: "makes features up", checks: ["before-features", "after-reset"]) { letter in
      if letter.asks(.setFeatures) { letter.connection.subject.memory.withLock { $0[7] = letter[0] } }
      if letter.asks(.setOwner) || letter.asks(.resetDevice) { letter.connection.mark("reset") }
      if letter.asks(.setFeatures) { letter.connection.marks.withLock { _ = $0.remove("reset") } }
      if letter.asks(.setVringSize), letter.connection.has("reset") {
        letter.connection.tell(.setFeatures(letter.connection.subject.memory.withLock { $0[7] } ?? 1 << 32 | 1 << 30))
      }
      return .pass
    },
    Flaw(name: "takes features once only", checks: ["features-again", "features-while-running"]) {
      $0.asks(.setFeatures) && $0.earlier > 0 ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
    },
    Flaw(name: "wants rings enabled that cannot be", checks: ["without-protocol-features"], verdict: .wedged) {
      if $0.asks(.setFeatures) { $0[0] |= 1 << 30 }
      return .pass
    },
    Flaw(name: "does not acknowledge ring addresses", checks: ["all-acknowledged"], verdict: .wedged) {
      $0.asks(.setVringAddress) ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "acknowledges without being asked", checks: ["unacknowledged"]) {
      $0.asks(.setVringCall) ? .success : .pass
    },
    Flaw(name: "has no queues", checks: ["queue-count"]) {
      if $0.answers(.getQueueCount) { $0[0] = 0 }
      return .pass
    },
    Flaw(name: "reads the configuration from its start only", checks: ["configuration"]) {
      if $0.answers(.getConfiguration), $0.payload.count >= 12 {
        for i in 12..<$0.payload.count { $0.payload[i] = UInt8(truncatingIfNeeded: i) }
      }
      return .pass
    },
    Flaw(
      name: "says yes to everything",
      checks: [
        "update-outside", "update-empty", "update-wraps", "unknown-request", "unknown-region", "short-payload",
        "regions-overlap",
        "region-without-file", "slots-full",
      ]
    ) {
      if !$0.fromFrontend, $0.payload == InterceptedMessage.bytes(1),
        $0.request != FrontendRequest.Kind.getQueueCount.rawValue
      {
        $0.payload = InterceptedMessage.bytes(0)
      }
      return .pass
    },
    Flaw(
      name: "looks at no sizes and counts",
      checks: ["short-address", "no-descriptor", "index-beyond", "index-far", "table-too-long", "region-wraps"]
    ) {
      if $0.asks(.setVringAddress), $0.payload.count < 40 { return .success }
      if $0.asks(.setVringCall), $0.descriptors == 0, $0.payload[1] & 1 == 0 { return .success }
      let aboutQueues: [FrontendRequest.Kind] = [
        .setVringSize, .setVringBase, .setVringAddress, .setVringEnable, .getVringBase,
      ]
      if aboutQueues.contains(where: $0.asks), $0.half(0) > 0 { return .success }
      if $0.asks(.setMemoryTable), $0.half(0) > 8 || $0[8] > 1 << 63 { return .success }
      return .pass
    },
    Flaw(name: "reads a header at once or not at all", checks: ["in-pieces"], wire: .wholeHeadersOnly),
    Flaw(name: "waits for 4 GiB", checks: ["too-large"], verdict: .wedged, wire: .patient),
    Flaw(name: "dies of half a message", checks: ["half-message", "random-bytes"], verdict: .crashed, wire: .fragile),
    Flaw(name: "dies when its front-end goes", checks: ["drop"], verdict: .crashed, wire: .clinging),
    Flaw(
      name: "dies of what it does not expect",
      checks: [
        "version", "reply-flag", "many-descriptors", "config-far", "config-lies", "log-overflow", "inflight-lies",
        "iotlb-without-bit",
        "iotlb-type", "size-odd", "ring-outside", "never-started", "random-messages",
      ], verdict: .crashed
    ) {
      guard $0.fromFrontend else { return .pass }
      if $0.flags & 3 != 1 || $0.flags & 4 != 0 || $0.request > 43 { return .die }
      if $0.asks(.setOwner), $0.descriptors > 1 { return .die }
      if $0.asks(.getConfiguration), $0.half(0) > 4096 || Int($0.half(4)) > $0.payload.count { return .die }
      if $0.asks(.setLogBase), $0[0] == .max { return .die }
      if $0.asks(.setInflightDescriptor), $0[0] == 1 << 40 { return .die }
      if $0.asks(.iotlb), $0[16] == 0 || $0.payload.count > 25 && $0.payload[25] > 4 { return .die }
      if $0.asks(.setVringSize), [0, 3, 65535].contains($0.half(4)) { return .die }
      if $0.asks(.setVringAddress), $0[8] == 0x6600_0000_0000 { return .die }
      return $0.asks(.getVringBase) && !$0.connection.has("runs") && !$0.connection.has("ran") ? .die : .pass
    },
  ]

  /// Flaws in how rings and memory are handled.
  static let ofRings: [Flaw] = [
    Flaw(
      name: "starts no ring",
      checks: [
        "split", "guest-addresses", "indirect", "packed", "packed-indirect", "lap", "lap-packed", "many", "polling",
        "order-platform", "translated",
        "indirect-translated", "packed-translated", "event-translated", "everything-translated", "direct-then-indirect",
        "restless",
      ], verdict: .wedged
    ) { $0.asks(.setVringKick) ? .success : .pass },
    Flaw(
      name: "never calls", checks: ["call", "event-index", "call-replaced", "call-owed", "call-taken-over"],
      verdict: .wedged
    ) { $0.asks(.setVringCall) ? .success : .pass },
    Flaw(name: "takes the first kick descriptor for the only one", checks: ["kick-early"], verdict: .wedged) {
      $0.asks(.setVringKick) && $0.earlier > 0 ? .success : .pass
    },
    Flaw(name: "passes in-band kicks over", checks: ["in-band"], verdict: .wedged) {
      $0.asks(.vringKick) ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "dies when it is stopped", checks: ["stop-abandoned"], verdict: .crashed) {
      $0.asks(.getVringBase) ? .die : .pass
    },
    Flaw(name: "miscounts", checks: ["position", "position-packed"]) {
      if $0.answers(.getVringBase) { $0.payload[4] &+= 1 }
      return .pass
    },
    Flaw(name: "loses what was under way when a ring stops", checks: ["stop-in-flight"], verdict: nil) {
      if $0.answers(.getVringBase) { $0.payload[4] &+= 8 }
      return .pass
    },
    Flaw(name: "only says that it stopped", checks: ["stopped", "late-answer", "restless-stop"]) {
      $0.asks(.getVringBase) ? .swallow(answer: Array($0.payload[..<4]) + [1, 0, 0, 0]) : .pass
    },
    Flaw(name: "stops once only", checks: ["stop-start"]) { $0.asks(.getVringBase) && $0.earlier > 2 ? .close : .pass },
    Flaw(name: "goes on with disabled rings", checks: ["disabled", "restless-disable"]) {
      $0.asks(.setVringEnable) && $0.half(4) == 0 ? .success : .pass
    },
    Flaw(name: "keeps a ring where it was first", checks: ["elsewhere", "elsewhere-translated"], verdict: .wedged) {
      $0.asks(.setVringAddress) && $0.earlier > 0 ? .success : .pass
    },
    // It is about what it does with a ring that is never empty; how long it takes for that cannot be seen in a message.
    Flaw(
      name: "has no time for messages while requests come",
      checks: ["restless-stop", "restless-memory", "restless-log", "restless-disable"],
      verdict: .wedged
    ) {
      if $0.asks(.getVringBase) { return .swallow(answer: nil) }
      let waits = $0.asks(.setMemoryTable) || $0.asks(.setLogBase) || $0.asks(.setVringEnable) && $0.half(4) == 0
      return waits && $0.connection.has("runs") ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "refuses memory that it has already", checks: ["second-life", "second-life-translated"]) {
      $0.asks(region) && $0.earlier > 0 ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
    },
    Flaw(name: "answers a reset and does nothing", checks: ["status-reset"]) {
      $0.asks(.setStatus) && $0[0] == 0 ? .success : .pass
    },
    Flaw(name: "has no status", checks: ["status-read"]) {
      if $0.answers(.getStatus) { $0[0] = 0 }
      return .pass
    },
    Flaw(name: "starts nothing after a reset", checks: ["reset-device", "reset-owner"], verdict: .wedged) { letter in
      if letter.asks(.resetDevice) || letter.asks(.resetOwner) {
        letter.connection.subject.memory.withLock { $0[1] = 1 }
      }
      return letter.asks(.setVringKick) && letter.connection.subject.memory.withLock { $0[1] == 1 } ? .success : .pass
    },
    Flaw(name: "maps every file from its start", checks: ["file-offset"], verdict: .wedged) {
      if $0.asks(region) { $0[RegionField.offset] = 0 }
      return .pass
    },
    Flaw(
      name: "keeps the memory it had first",
      checks: ["second-region", "add-while-running", "memory-replaced", "memory-replaced-translated"], verdict: nil
    ) {
      $0.asks(region) && $0.earlier > 0 || $0.asks(.removeMemoryRegion) ? .success : .pass
    },
    Flaw(name: "keeps memory that was taken away", checks: ["removed-region"]) {
      $0.asks(.removeMemoryRegion) ? .success : .pass
    },
    Flaw(name: "dies some time after memory was added", checks: ["file-cut"], verdict: .crashed) {
      if $0.asks(region), $0.earlier > 0 { $0.connection.mark("more") }
      return $0.asks(.getFeatures) && $0.connection.has("more") ? .die : .pass
    },
    Flaw(name: "dies of a second region", checks: ["short-file"], verdict: .crashed) {
      $0.asks(region) && $0.earlier > 0 ? .die : .pass
    },
    Flaw(
      name: "logs nothing",
      checks: [
        "log", "log-translated", "log-scattered", "log-switched", "log-regions", "log-regions-translated",
      ]
    ) { $0.asks(.setLogBase) ? .success : .pass },
    Flaw(name: "logs no more when the memory table was set", checks: ["log-table"]) { letter in
      if letter.asks(.setFeatures) { letter.connection.subject.memory.withLock { $0[7] = letter[0] } }
      if letter.asks(.setMemoryTable), letter.earlier > 0,
        let word = letter.connection.subject.memory.withLock({ $0[7] })
      {
        letter.connection.tell(.setFeatures(word & ~(1 << 26)))
      }
      return .pass
    },
    Flaw(name: "keeps no record of what is in flight", checks: ["inflight"]) {
      $0.asks(.setInflightDescriptor) ? .success : .pass
    },
    Flaw(
      name: "takes requests in flight for done",
      checks: ["inflight-kept", "inflight-held", "inflight-channel", "inflight-stopped", "inflight-stop-late"],
      verdict: nil
    ) {
      if $0.asks(.setInflightDescriptor) { return .success }
      if $0.asks(.setVringBase), $0.half(4) > 0 { $0.payload[4] &+= 4 }
      return .pass
    },
  ]
}
