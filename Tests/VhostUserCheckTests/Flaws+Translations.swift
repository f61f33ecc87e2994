import Examination
import Synchronization
import VhostUser
import VhostUserCheck

extension Flaw {
  /// Flaws in how translations are handled.
  static let ofTranslations: [Flaw] = [
    Flaw(
      name: "takes no notice of invalidations",
      checks: [
        "invalidate", "invalidate-garbage", "invalidate-all", "invalidate-lazy", "invalidate-top", "invalidate-part",
        "unmap-in-flight",
      ]
    ) { $0.translates(.invalidate) ? .success : .pass },
    Flaw(name: "goes on with ring pages that moved", checks: ["ring-moved", "packed-moved"], verdict: nil) {
      $0.translates(.invalidate) ? .success : .pass
    },
    Flaw(name: "takes a range that ends at 2^64 for an empty one", checks: ["invalidate-lazy"]) {
      let (end, overflows) = $0[0].addingReportingOverflow($0[8])
      return $0.translates(.invalidate) && (overflows || $0[0] != 0 && end == 0) ? .success : .pass
    },
    Flaw(name: "takes size 0 for an empty range", checks: ["invalidate-all"]) {
      $0.translates(.invalidate) && $0[8] == 0 ? .success : .pass
    },
    Flaw(
      name: "does not acknowledge invalidations",
      checks: ["invalidate", "invalidate-while-held", "restless-invalidate"], verdict: .wedged
    ) {
      $0.translates(.invalidate) ? .swallow(answer: nil) : .pass
    },
    Flaw(name: "refuses to forget what it never knew", checks: ["invalidate-unknown"]) {
      // In its turn: an answer that came at once would pass for that to an UPDATE which is still on its way.
      if $0.translates(.invalidate), $0[0] >= 0x5000_0000_0000 { $0.connection.mark("unknown \($0.earlier)") }
      if $0.answers(.iotlb), $0.connection.has("unknown \($0.earlier)") { $0.payload = InterceptedMessage.bytes(1) }
      return .pass
    },
    Flaw(asking: "asks for everything twice", checks: ["asked-once"], channel: { $0.fromFrontend ? .pass : .twice }),
    Flaw(
      name: "asks where there is nothing", checks: ["no-misses-without", "zero-length"],
      injected: [
        IOTLBMessage(kind: .miss, address: 0x2_0000_0000, permission: .read)
      ]),
    Flaw(
      name: "gives translations", checks: ["channel"],
      injected: [IOTLBMessage(kind: .update, address: 0x2_0000_0000, size: 4096, permission: .read)]),
    Flaw(
      asking: "asks for reading, even to write", checks: ["miss-names"],
      channel: {
        if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 1 }
        return .pass
      }),
    Flaw(
      asking: "asks for everything with both permissions",
      checks: ["indirect-translated", "read-only-ring", "write-only-used", "least-permissions", "packed-permissions"],
      verdict: .wedged,
      channel: {
        if !$0.fromFrontend, $0.payload.count > 25 { $0.payload[24] = 3 }
        return .pass
      }),
    Flaw(
      asking: "writes where it may only read",
      checks: ["read-only-entry", "read-only-page", "read-then-write", "ring-then-write", "refused-write"],
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
    // For every question: the answer is sent once more, unasked for, and so taken as it is.
    Flaw(name: "takes all that an answer grants", checks: ["read-then-write", "ring-then-write", "write-then-read"]) {
      if $0.translates(.update), $0.payload[24] == 3 {
        $0.connection.tell(
          .iotlb(
            IOTLBMessage(
              kind: .update, address: $0[0], size: $0[8], frontendAddress: $0[16], permission: [.read, .write])))
      }
      return .pass
    },
    Flaw(
      asking: "takes one refusal for all", checks: ["refused-write", "refused-read"], verdict: nil,
      channel: { letter in
        guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue
        else { return .pass }
        let (page, access) = (letter[0] & ~4095, UInt64(letter.payload[24]))
        // Neither page is ever asked for both ways by a disk that has it right.
        return letter.connection.subject.memory.withLock { known in
          defer { if known[page] == nil { known[page] = access } }
          return known[page].map { $0 != access } ?? false
        } ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
      }),
    Flaw(
      asking: "does not ask for more than it has", checks: ["upgrade"],
      channel: {
        // The page of the answer, behind those of the ring and of the request's header.
        !$0.fromFrontend && $0.connection.subject.memory.withLock { [page = $0[0] & ~4095] in $0[page] != nil }
          ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
      },
      twist: { letter in
        if letter.translates(.update), letter.payload[24] == 1 {
          letter.connection.subject.memory.withLock { $0[letter[0]] = 1 }
        }
        return .pass
      }),
    Flaw(name: "forgets translations that nobody asked for", checks: ["unsolicited"]) { letter in
      // Answers to misses are for pages below.
      letter.translates(.update) && letter[0] > 0xffc0_a000
        && letter.connection.subject.memory.withLock { $0.updateValue(1, forKey: letter[0]) == nil } ? .success : .pass
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
      letter.translates(.update)
        && letter.connection.subject.memory.withLock { $0.updateValue(1, forKey: letter[0]) != nil } ? .close : .pass
    },
    // It has one translation for a run of neighbouring pages and, instead of asking for the next page, lengthens it.
    Flaw(
      asking: "takes neighbouring device pages for neighbouring memory",
      checks: [
        "scattered-ring", "scattered-packed", "scattered-buffer", "event-scattered", "buffer-anywhere",
        "indirect-scattered", "partly-mapped",
      ],
      verdict: nil,
      channel: { letter in
        guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue
        else { return .pass }
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
        if letter.translates(.update),
          let count = letter.connection.subject.memory.withLock({ [first = letter[0]] in $0[first + 1] })
        {
          letter[8] = 4096 * count
        }
        return .pass
      }),
    Flaw(
      asking: "has room for two thousand translations", checks: ["big-working-set"], verdict: nil,
      channel: {
        !$0.fromFrontend && $0.earlier > 2000 ? .swallow(answer: InterceptedMessage.bytes(1)) : .pass
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
    Flaw(
      asking: "remembers translations for ever",
      checks: ["empty-at-first", "restart-forgets", "second-life-translated"],
      channel: { letter in
        guard !letter.fromFrontend, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue
        else { return .pass }
        let page = letter[0] & ~4095
        guard
          let (base, offset) = letter.connection.subject.memory.withLock({ known in
            known[page].map { (known[0] ?? 0, $0) }
          })
        else { return .pass }
        letter.connection.tell(
          .iotlb(
            IOTLBMessage(
              kind: .update, address: page, size: 4096, frontendAddress: base + offset, permission: [.read, .write])))
        return .success
      },
      twist: { letter in
        noteMemory(letter)
        if letter.translates(.update) {
          letter.connection.subject.memory.withLock { known in
            if known[letter[0]] == nil { known[letter[0]] = letter[16] &- (known[0] ?? 0) }
          }
        }
        return .pass
      }),
    Flaw(
      asking: "dies when it is refused a translation", checks: ["miss-refused", "ring-unmapped", "ring-lost"],
      verdict: .crashed,
      channel: {
        $0.fromFrontend && $0[0] != 0 ? .die : .pass
      }),
    Flaw(
      asking: "dies of a yes without a translation", checks: ["empty-success"], verdict: .crashed,
      channel: {
        // The translation comes first.
        if $0.fromFrontend, $0[0] == 0, !$0.connection.marks.withLock({ $0.remove("told") != nil }) { return .die }
        return .pass
      },
      twist: {
        if $0.translates(.update) { $0.connection.mark("told") }
        return .pass
      }),
    Flaw(
      asking: "reads no messages while it waits for a translation",
      checks: ["miss-unanswered", "invalidate-while-held", "inflight-stop-late"], verdict: nil, channel: { _ in .pass }
    ) {
      guard $0.fromFrontend, !$0.translates(.update) else { return .pass }
      return $0.connection.openMisses.load(ordering: .sequentiallyConsistent) > 0 ? .swallow(answer: nil) : .pass
    },
  ]

  static let all = ofMessages + ofRings + ofTranslations
}
