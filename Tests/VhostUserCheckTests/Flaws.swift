import Synchronization
import Testing
import VhostUser
import VhostUserCheck
import Virtio

/// A flaw of a back-end, and the checks that have to find it.
struct Flaw: Sendable, CustomTestStringConvertible {
  var name: String
  var checks: [String]
  /// What they have to say; nil where it depends on who is first.
  var verdict: Verdict? = .broken
  var wire = Wire.well
  var channel: Twist?
  var injected: [IOTLBMessage] = []
  var twist: Twist = { _ in .pass }
  var testDescription: String { name }

  init(
    name: String, checks: [String], verdict: Verdict? = .broken, wire: Wire = .well, injected: [IOTLBMessage] = [],
    twist: @escaping Twist = { _ in .pass }
  ) {
    self.name = name
    self.checks = checks
    self.verdict = verdict
    self.wire = wire
    self.injected = injected
    self.twist = twist
  }

  /// With something in the back-end's own channel. The label keeps a closure behind the call from meaning the channel.
  init(asking name: String, checks: [String], verdict: Verdict? = .broken, channel: @escaping Twist, twist: @escaping Twist = { _ in .pass }) {
    self.init(name: name, checks: checks, verdict: verdict, twist: twist)
    self.channel = channel
  }
}

private let firstGuest: UInt64 = 0x4000_0000
private let guestBytes: UInt64 = 8 << 20
private let region = FrontendRequest.Kind.addMemoryRegion
/// Where a region's fields are in ADD_MEM_REG: behind eight bytes of padding.
private enum RegionField { static let guest = 8, user = 24, offset = 32 }

/// A translation that a back-end made up: the device address taken for a guest address.
private func asGuestAddress(_ letter: inout Letter) {
  guard letter[0] >= firstGuest, letter[0] < firstGuest + guestBytes, let base = letter.connection.subject.memory.withLock({ $0[0] }) else { return }
  letter[16] = base + letter[0] - firstGuest
}
private func noteMemory(_ letter: Letter) {
  if letter.asks(region), letter[RegionField.guest] == firstGuest { letter.connection.subject.memory.withLock { $0[0] = letter[RegionField.user] } }
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
      $0.asks(.setFeatures) && $0[0] & (1 << 24 | 1 << 27) != 0 ? .swallow(answer: Letter.bytes(1)) : .pass
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
      $0.asks(.setFeatures) && $0.earlier > 0 ? .swallow(answer: Letter.bytes(1)) : .pass
    },
    Flaw(name: "wants rings enabled that cannot be", checks: ["without-protocol-features"], verdict: .wedged) {
      if $0.asks(.setFeatures) { $0[0] |= 1 << 30 }
      return .pass
    },
    Flaw(name: "does not acknowledge ring addresses", checks: ["all-acknowledged"], verdict: .wedged) {
      $0.asks(.setVringAddress) ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "acknowledges without being asked", checks: ["unacknowledged"]) { $0.asks(.setVringCall) ? .success : .pass },
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
        "update-outside", "update-empty", "update-wraps", "unknown-request", "unknown-region", "short-payload", "regions-overlap",
        "region-without-file", "slots-full",
      ]
    ) {
      if !$0.fromFrontend, $0.payload == Letter.bytes(1), $0.request != FrontendRequest.Kind.getQueueCount.rawValue { $0.payload = Letter.bytes(0) }
      return .pass
    },
    Flaw(name: "looks at no sizes and counts", checks: ["short-address", "no-descriptor", "index-beyond", "index-far", "table-too-long", "region-wraps"]) {
      if $0.asks(.setVringAddress), $0.payload.count < 40 { return .success }
      if $0.asks(.setVringCall), $0.descriptors == 0, $0.payload[1] & 1 == 0 { return .success }
      let aboutQueues: [FrontendRequest.Kind] = [.setVringSize, .setVringBase, .setVringAddress, .setVringEnable, .getVringBase]
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
        "version", "reply-flag", "many-descriptors", "config-far", "config-lies", "log-overflow", "inflight-lies", "iotlb-without-bit",
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
        "split", "guest-addresses", "indirect", "packed", "packed-indirect", "lap", "lap-packed", "many", "polling", "order-platform", "translated",
        "indirect-translated", "packed-translated", "event-translated", "everything-translated", "direct-then-indirect", "restless",
      ], verdict: .wedged
    ) { $0.asks(.setVringKick) ? .success : .pass },
    Flaw(name: "never calls", checks: ["call", "event-index", "call-replaced", "call-owed", "call-taken-over"], verdict: .wedged) { $0.asks(.setVringCall) ? .success : .pass },
    Flaw(name: "takes the first kick descriptor for the only one", checks: ["kick-early"], verdict: .wedged) {
      $0.asks(.setVringKick) && $0.earlier > 0 ? .success : .pass
    },
    Flaw(name: "passes in-band kicks over", checks: ["in-band"], verdict: .wedged) { $0.asks(.vringKick) ? .swallow(answer: nil) : .pass },
    Flaw(name: "dies when it is stopped", checks: ["stop-abandoned"], verdict: .crashed) { $0.asks(.getVringBase) ? .die : .pass },
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
    Flaw(name: "goes on with disabled rings", checks: ["disabled", "restless-disable"]) { $0.asks(.setVringEnable) && $0.half(4) == 0 ? .success : .pass },
    Flaw(name: "keeps a ring where it was first", checks: ["elsewhere", "elsewhere-translated"], verdict: .wedged) {
      $0.asks(.setVringAddress) && $0.earlier > 0 ? .success : .pass
    },
    // It is about what it does with a ring that is never empty; how long it takes for that cannot be seen in a message.
    Flaw(
      name: "has no time for messages while requests come", checks: ["restless-stop", "restless-memory", "restless-log", "restless-disable"],
      verdict: .wedged
    ) {
      if $0.asks(.getVringBase) { return .swallow(answer: nil) }
      let waits = $0.asks(.setMemoryTable) || $0.asks(.setLogBase) || $0.asks(.setVringEnable) && $0.half(4) == 0
      return waits && $0.connection.has("runs") ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "refuses memory that it has already", checks: ["second-life", "second-life-translated"]) {
      $0.asks(region) && $0.earlier > 0 ? .swallow(answer: Letter.bytes(1)) : .pass
    },
    Flaw(name: "answers a reset and does nothing", checks: ["status-reset"]) { $0.asks(.setStatus) && $0[0] == 0 ? .success : .pass },
    Flaw(name: "has no status", checks: ["status-read"]) {
      if $0.answers(.getStatus) { $0[0] = 0 }
      return .pass
    },
    Flaw(name: "starts nothing after a reset", checks: ["reset-device", "reset-owner"], verdict: .wedged) { letter in
      if letter.asks(.resetDevice) || letter.asks(.resetOwner) { letter.connection.subject.memory.withLock { $0[1] = 1 } }
      return letter.asks(.setVringKick) && letter.connection.subject.memory.withLock { $0[1] == 1 } ? .success : .pass
    },
    Flaw(name: "maps every file from its start", checks: ["file-offset"], verdict: .wedged) {
      if $0.asks(region) { $0[RegionField.offset] = 0 }
      return .pass
    },
    Flaw(name: "keeps the memory it had first", checks: ["second-region", "add-while-running", "memory-replaced", "memory-replaced-translated"], verdict: nil) {
      $0.asks(region) && $0.earlier > 0 || $0.asks(.removeMemoryRegion) ? .success : .pass
    },
    Flaw(name: "keeps memory that was taken away", checks: ["removed-region"]) { $0.asks(.removeMemoryRegion) ? .success : .pass },
    Flaw(name: "dies some time after memory was added", checks: ["file-cut"], verdict: .crashed) {
      if $0.asks(region), $0.earlier > 0 { $0.connection.mark("more") }
      return $0.asks(.getFeatures) && $0.connection.has("more") ? .die : .pass
    },
    Flaw(name: "dies of a second region", checks: ["short-file"], verdict: .crashed) { $0.asks(region) && $0.earlier > 0 ? .die : .pass },
    Flaw(name: "logs nothing", checks: [
      "log", "log-translated", "log-scattered", "log-switched", "log-regions", "log-regions-translated",
    ]) { $0.asks(.setLogBase) ? .success : .pass },
    Flaw(name: "logs no more when the memory table was set", checks: ["log-table"]) { letter in
      if letter.asks(.setFeatures) { letter.connection.subject.memory.withLock { $0[7] = letter[0] } }
      if letter.asks(.setMemoryTable), letter.earlier > 0, let word = letter.connection.subject.memory.withLock({ $0[7] }) {
        letter.connection.tell(.setFeatures(word & ~(1 << 26)))
      }
      return .pass
    },
    Flaw(name: "keeps no record of what is in flight", checks: ["inflight"]) { $0.asks(.setInflightDescriptor) ? .success : .pass },
    Flaw(name: "takes requests in flight for done", checks: ["inflight-kept", "inflight-held", "inflight-stopped", "inflight-stop-late"], verdict: nil) {
      if $0.asks(.setInflightDescriptor) { return .success }
      if $0.asks(.setVringBase), $0.half(4) > 0 { $0.payload[4] &+= 4 }
      return .pass
    },
  ]

  /// Flaws in how translations are handled.
  static let ofTranslations: [Flaw] = [
    Flaw(
      name: "takes no notice of invalidations",
      checks: [
        "invalidate", "invalidate-garbage", "invalidate-all", "invalidate-lazy", "invalidate-top", "invalidate-part", "unmap-in-flight",
      ]
    ) { $0.translates(.invalidate) ? .success : .pass },
    Flaw(name: "goes on with ring pages that moved", checks: ["ring-moved", "packed-moved"], verdict: nil) { $0.translates(.invalidate) ? .success : .pass },
    Flaw(name: "takes a range that ends at 2^64 for an empty one", checks: ["invalidate-lazy"]) {
      let (end, overflows) = $0[0].addingReportingOverflow($0[8])
      return $0.translates(.invalidate) && (overflows || $0[0] != 0 && end == 0) ? .success : .pass
    },
    Flaw(name: "takes size 0 for an empty range", checks: ["invalidate-all"]) { $0.translates(.invalidate) && $0[8] == 0 ? .success : .pass },
    Flaw(name: "does not acknowledge invalidations", checks: ["invalidate", "invalidate-while-held", "restless-invalidate"], verdict: .wedged) {
      $0.translates(.invalidate) ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "refuses to forget what it never knew", checks: ["invalidate-unknown"]) {
      // In its turn: an answer that came at once would pass for that to an UPDATE which is still on its way.
      if $0.translates(.invalidate), $0[0] >= 0x5000_0000_0000 { $0.connection.mark("unknown \($0.earlier)") }
      if $0.answers(.iotlb), $0.connection.has("unknown \($0.earlier)") { $0.payload = Letter.bytes(1) }
      return .pass
    },
    Flaw(asking: "asks for everything twice", checks: ["asked-once"], channel: { $0.fromFrontend ? .pass : .twice }),
    Flaw(name: "asks where there is nothing", checks: ["no-misses-without", "zero-length"], injected: [
      IOTLBMessage(kind: .miss, address: 0x2_0000_0000, permission: .read)
    ]),
    Flaw(name: "gives translations", checks: ["channel"], injected: [IOTLBMessage(kind: .update, address: 0x2_0000_0000, size: 4096, permission: .read)]),
    Flaw(asking: "asks for reading, whatever it is to do", checks: ["miss-names"], channel: {
      if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 1 }
      return .pass
    }),
    Flaw(
      asking: "asks for everything with both permissions",
      checks: ["indirect-translated", "read-only-ring", "write-only-used", "least-permissions", "packed-permissions"], verdict: .wedged,
      channel: {
        if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 3 }
        return .pass
      }),
    Flaw(
      asking: "writes where it may only read", checks: ["read-only-entry", "read-only-page", "read-then-write", "ring-then-write", "refused-write"],
      channel: {
        if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 1 }
        return .pass
      },
      twist: {
        if $0.translates(.update) { $0.payload[24] = 3 }
        return .pass
      }),
    Flaw(
      asking: "reads where it may only write", checks: ["write-only-page", "write-then-read", "refused-read"],
      channel: {
        // The ring's pages allow both, so that it does not matter there.
        if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 2 }
        return .pass
      },
      twist: {
        if $0.translates(.update) { $0.payload[24] = 3 }
        return .pass
      }),
    // Whatever it asked for: once more and unasked for, what an answer says is taken as it is.
    Flaw(name: "takes all that an answer grants", checks: ["read-then-write", "ring-then-write", "write-then-read"]) {
      if $0.translates(.update), $0.payload[24] == 3 {
        $0.connection.tell(.iotlb(IOTLBMessage(kind: .update, address: $0[0], size: $0[8], frontendAddress: $0[16], permission: [.read, .write])))
      }
      return .pass
    },
    Flaw(asking: "takes one refusal for all", checks: ["refused-write", "refused-read"], verdict: nil, channel: { letter in
      guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue else { return .pass }
      let (page, access) = (letter[0] & ~4095, UInt64(letter.payload[24]))
      // Neither page is ever asked for both ways by a disk that has it right.
      return letter.connection.subject.memory.withLock { known in
        defer { if known[page] == nil { known[page] = access } }
        return known[page].map { $0 != access } ?? false
      } ? .swallow(answer: Letter.bytes(1)) : .pass
    }),
    Flaw(asking: "does not ask for more than it has", checks: ["upgrade"], channel: {
      // The page of the answer, behind those of the ring and of the request's header.
      !$0.fromFrontend && $0.connection.subject.memory.withLock { [page = $0[0] & ~4095] in $0[page] != nil } ? .swallow(answer: Letter.bytes(1)) : .pass
    }, twist: { letter in
      if letter.translates(.update), letter.payload[24] == 1 { letter.connection.subject.memory.withLock { $0[letter[0]] = 1 } }
      return .pass
    }),
    Flaw(name: "forgets translations that nobody asked for", checks: ["unsolicited"]) { letter in
      // Answers to misses are for pages below.
      letter.translates(.update) && letter[0] > 0xffc0_a000 && letter.connection.subject.memory.withLock { $0.updateValue(1, forKey: letter[0]) == nil } ? .success : .pass
    },
    Flaw(name: "takes a page of each translation", checks: ["pass-through"]) {
      if $0.translates(.update) { $0[8] = 4096 }
      return .pass
    },
    // Wherever the second leads: a page that is asked about for both accesses has two that lead to the same place.
    Flaw(name: "keeps the first translation of an address", checks: ["update-replaces"]) { letter in
      guard letter.translates(.update) else { return .pass }
      let first = letter.connection.subject.memory.withLock { known in
        let first = known[letter[0]] ?? letter[16]
        known[letter[0]] = first
        return first
      }
      return first == letter[16] ? .pass : .success
    },
    Flaw(name: "refuses the second translation of an address", checks: ["update-twice"]) { letter in
      letter.translates(.update) && letter.connection.subject.memory.withLock { $0.updateValue(1, forKey: letter[0]) != nil } ? .close : .pass
    },
    // It has one translation for a run of neighbouring pages and, instead of asking for the next page, lengthens it.
    Flaw(
      asking: "takes neighbouring device pages for neighbouring memory",
      checks: ["scattered-ring", "scattered-packed", "scattered-buffer", "event-scattered", "buffer-anywhere", "indirect-scattered", "partly-mapped"],
      verdict: nil,
      channel: { letter in
        guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue else { return .pass }
        let page = letter[0] & ~4095
        // A page's number leads to the first page of its run; that one's number plus one to how many pages the run has.
        letter[0] = letter.connection.subject.memory.withLock { known in
          let first = known[page] ?? known[page &- 4096] ?? page
          known[page] = first
          known[first + 1] = max(known[first + 1] ?? 1, (page - first) / 4096 + 1)
          return first
        }
        return .pass
      },
      twist: { letter in
        if letter.translates(.update), let count = letter.connection.subject.memory.withLock({ [first = letter[0]] in $0[first + 1] }) { letter[8] = 4096 * count }
        return .pass
      }),
    Flaw(asking: "has room for two thousand translations", checks: ["big-working-set"], verdict: nil, channel: {
      !$0.fromFrontend && $0.earlier > 2000 ? .swallow(answer: Letter.bytes(1)) : .pass
    }),
    Flaw(name: "takes device addresses for guest addresses", checks: ["guest-addresses-unused"]) {
      noteMemory($0)
      if $0.translates(.update) { asGuestAddress(&$0) }
      return .pass
    },
    Flaw(name: "gives the translation up under a running ring", checks: ["features-dropped"]) {
      noteMemory($0)
      if $0.asks(.setFeatures), $0[0] & 1 << 33 == 0, $0.earlier > 0 {
        $0.connection.mark("dropped")
        $0.connection.tell(.iotlb(IOTLBMessage(kind: .invalidate, address: 0)))
        // It goes on, with the bit, so that its answer comes when the translations are gone.
        $0[0] |= 1 << 33
        return .pass
      }
      if $0.connection.has("dropped"), $0.translates(.update) { asGuestAddress(&$0) }
      return .pass
    },
    Flaw(name: "keeps the bit for good", checks: ["renegotiated", "without-after-with"], verdict: nil) { letter in
      guard letter.asks(.setFeatures) else { return .pass }
      letter.connection.subject.memory.withLock { if letter[0] & 1 << 33 != 0 { $0[33] = 1 } }
      if letter.connection.subject.memory.withLock({ $0[33] == 1 }) { letter[0] |= 1 << 33 }
      return .pass
    },
    Flaw(asking: "remembers translations for ever", checks: ["empty-at-first", "restart-forgets", "second-life-translated"], channel: { letter in
      guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue else { return .pass }
      let page = letter[0] & ~4095
      guard let (base, offset) = letter.connection.subject.memory.withLock({ known in known[page].map { (known[0] ?? 0, $0) } }) else { return .pass }
      letter.connection.tell(.iotlb(IOTLBMessage(kind: .update, address: page, size: 4096, frontendAddress: base + offset, permission: [.read, .write])))
      return .success
    }, twist: { letter in
      noteMemory(letter)
      if letter.translates(.update) {
        letter.connection.subject.memory.withLock { known in if known[letter[0]] == nil { known[letter[0]] = letter[16] &- (known[0] ?? 0) } }
      }
      return .pass
    }),
    Flaw(asking: "dies when it is refused a translation", checks: ["miss-refused", "ring-unmapped", "ring-lost"], verdict: .crashed, channel: {
      $0.fromFrontend && $0[0] != 0 ? .die : .pass
    }),
    Flaw(asking: "dies of a yes without a translation", checks: ["empty-success"], verdict: .crashed, channel: {
      // The translation comes first.
      if $0.fromFrontend, $0[0] == 0, !$0.connection.marks.withLock({ $0.remove("told") != nil }) { return .die }
      return .pass
    }, twist: {
      if $0.translates(.update) { $0.connection.mark("told") }
      return .pass
    }),
    Flaw(asking: "reads no messages while it waits for a translation", checks: ["miss-unanswered", "invalidate-while-held", "inflight-stop-late"], verdict: nil, channel: { _ in .pass }) {
      guard $0.fromFrontend, !$0.translates(.update) else { return .pass }
      return $0.connection.openMisses.load(ordering: .sequentiallyConsistent) > 0 ? .swallow(answer: nil) : .pass
    },
  ]

  static let all = ofMessages + ofRings + ofTranslations
}
