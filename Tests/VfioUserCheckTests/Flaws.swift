import Examination
import Testing

/// A flaw of a server, and the checks that have to find it.
struct Flaw: Sendable, CustomTestStringConvertible {
  var name: String
  var checks: [String]
  /// The expected result; nil: any fault.
  var verdict: Verdict?
  var wire: Wire
  var fault: MailFault
  var testDescription: String { name }

  init(
    _ name: String, _ checks: [String], _ verdict: Verdict? = .broken, wire: Wire = .well,
    _ fault: @escaping MailFault = { _ in .pass }
  ) {
    (self.name, self.checks, self.verdict, self.wire, self.fault) = (name, checks, verdict, wire, fault)
  }
}

/// The commands by their numbers.
enum Number {
  static let version: UInt16 = 1, map: UInt16 = 2, unmap: UInt16 = 3, info: UInt16 = 4, region: UInt16 = 5
  static let interrupt: UInt16 = 7, set: UInt16 = 8, read: UInt16 = 9, write: UInt16 = 10
  static let readDMA: UInt16 = 11, reset: UInt16 = 13, several: UInt16 = 15
}

/// Where the checks have their memory and their data.
let firstAddress: UInt64 = 0x1_0000_0000
let dataAddress: UInt64 = 0x2_0000_0000

extension Letter {
  /// A DMA_MAP of data: from, and to below, these addresses.
  var mapsData: Bool { asks(Number.map) && self[16] >= dataAddress && self[16] < dataAddress + (1 << 20) }
  /// A write of the command register.
  var setsCommand: Bool { asks(Number.write) && half(8) == 7 && self[0] == 4 }
  var noReply: Bool { flags & 0x10 != 0 }
  /// A write of a doorbell.
  var rings: Bool { asks(Number.write) && half(8) == 0 && self[0] >= 0x1000 }
  func sets(_ flags: UInt32) -> Bool { asks(Number.set) && half(4) == flags }
}

extension Flaw {
  /// Flaws in how messages are taken.
  static let ofMessages: [Flaw] = [
    Flaw(
      "acknowledges what it refuses",
      [
        "version-short", "version-first", "info-short", "region-info-short", "interrupt-info-short", "region-index",
        "interrupt-index", "read-end", "read-nothing", "read-huge", "read-short", "write-end", "write-lies",
        "write-several-lies", "interrupt-range", "interrupt-kind", "interrupt-flags", "interrupt-truths",
        "interrupt-set-short", "map-overlap", "map-empty", "map-wraps", "map-offset-wraps", "map-short", "unmap-short",
        "message-map", "unknown-command", "servers-command", "feature", "migration", "region-fds",
      ]
    ) {
      if !$0.fromClient, $0.isReply, $0.hasFailed { ($0.flags, $0.error) = (1, 0) }
      return .pass
    },
    Flaw("refuses an overlap without saying why", ["map-overlap"]) {
      if $0.answers(Number.map), $0.hasFailed { $0.error = 22 }
      return .pass
    },
    Flaw("speaks a later version than the client", ["version"]) {
      if $0.answers(Number.version) { $0.put(9, 2, 2) }
      return .pass
    },
    Flaw("has a text that is no JSON", ["version"]) {
      if $0.answers(Number.version) { $0.payload[5] = 0x5b }
      return .pass
    },
    Flaw("wants a text with VERSION", ["version-bare"]) {
      $0.asks(Number.version) && $0.payload.count == 4 ? .refuse(22) : .pass
    },
    Flaw("wants known capabilities alone", ["version-unknown-keys"]) {
      $0.asks(Number.version) && $0.payload.contains(0x5b) ? .refuse(22) : .pass
    },
    Flaw("dies of a text that nests", ["version-odd-text"], .crashed) {
      $0.asks(Number.version) && $0.payload.count > 8 && $0.payload[4..<8].allSatisfy { $0 == 0x5b } ? .die : .pass
    },
    Flaw("agrees to any version", ["version-major"]) {
      $0.asks(Number.version) && $0.number(0, 2) == 7 ? .answer([7, 0, 0, 0]) : .pass
    },
    Flaw("wants the minor version that it speaks", ["version-minor"]) {
      $0.asks(Number.version) && $0.number(2, 2) > 0 ? .refuse(22) : .pass
    },
    Flaw("dies of a second VERSION", ["version-twice"], .crashed) {
      $0.asks(Number.version) && $0.mail.count("version") > 0 ? .die : .pass
    },
    Flaw("numbers replies with a byte", ["reply"]) {
      if !$0.fromClient { $0.id &= 0xff }
      return .pass
    },
    Flaw("loses one of many commands", ["in-order"], .wedged) {
      $0.asks(Number.info) && $0.mail.count("info") == 63 ? .drop : .pass
    },
    Flaw("wants a header in one piece", ["pieces"], nil, wire: .wholeHeadersOnly),
    Flaw("believes any size", ["size-small", "size-huge"], wire: .credulous),
    Flaw("dies of what is cut or nonsense", ["cut", "garbage-headers"], .crashed, wire: .fragile),
    Flaw("dies of a reply to nothing", ["stray-reply"], .crashed) { $0.fromClient && $0.isReply ? .die : .pass },
    Flaw("dies of an unknown type", ["odd-type"], .crashed) { $0.fromClient && $0.flags & 0xf > 1 ? .die : .pass },
    Flaw("dies of many descriptors", ["descriptors-many"], .crashed) { $0.files.count > 16 ? .die : .pass },
    Flaw("leaks descriptors", ["map-descriptors"]) {
      if $0.asks(Number.info) { for file in $0.files { _ = $0.mail.subject.keep(file) } }
      return .pass
    },
    Flaw("dies when it has refused many commands", ["garbage-payloads"], .crashed) {
      !$0.fromClient && $0.hasFailed && $0.mail.count("failed") > 8 ? .die : .pass
    },
  ]

  /// Flaws in what a device's parts are.
  static let ofParts: [Flaw] = [
    Flaw("says that it is no PCI device", ["info"]) {
      if $0.answers(Number.info) { $0.put(1, 4, 4) }
      return .pass
    },
    Flaw("has half a configuration space", ["region-info"]) {
      if $0.answers(Number.region), $0.half(8) == 7 { $0[16] = 64 }
      return .pass
    },
    Flaw("sends more than there is room for", ["region-room"]) {
      if $0.answers(Number.region), !$0.hasFailed { $0.payload += [UInt8](repeating: 0, count: 16) }
      return .pass
    },
    Flaw("has regions to be mapped, and no file for them", ["region-sparse"]) {
      if $0.answers(Number.region), $0[16] > 0 { $0.put(7, 4, 4) }
      return .pass
    },
    Flaw("has interrupts that take no eventfds", ["interrupt-info"]) {
      if $0.answers(Number.interrupt) { $0.put(0, 4, 4) }
      return .pass
    },
    Flaw("is nobody's device", ["config-space"]) {
      if $0.answers(Number.read), $0.half(8) == 7, $0[0] == 0, $0.payload.count > 17 { $0.put(0xffff, 16, 2) }
      return .pass
    },
    Flaw("reads single bytes badly", ["read-sizes"]) {
      if $0.answers(Number.read), $0.payload.count == 17 { $0.payload[16] ^= 1 }
      return .pass
    },
    Flaw("dies of an empty read", ["read-empty"], .crashed) { $0.asks(Number.read) && $0.half(12) == 0 ? .die : .pass },
    Flaw("does not write its command register", ["write", "write-posted"]) {
      $0.setsCommand ? .answer(Array($0.payload.prefix(16))) : .pass
    },
    Flaw("drops writes that want no reply", ["write-posted"]) { $0.setsCommand && $0.noReply ? .drop : .pass },
    Flaw("answers what wants no reply", ["write-posted", "posted-wrong"]) {
      if $0.fromClient { $0.flags &= ~0x10 }
      return .pass
    },
    Flaw("does none of several writes", ["write-several"]) {
      $0.asks(Number.several) ? .answer(Array($0.payload.prefix(8))) : .pass
    },
    Flaw("has regions twice as large as its BARs", ["bar-size"]) {
      if $0.answers(Number.region), $0.half(8) < 6 { $0[16] *= 2 }
      return .pass
    },
    Flaw("does not reset", ["reset"]) { $0.asks(Number.reset) ? .done : .pass },
    Flaw("dies of registers that nobody writes", ["garbage-registers"], .crashed) {
      $0.asks(Number.write) && $0.half(8) == 7 && $0[0] >= 0x80 ? .die : .pass
    },
  ]

  /// Flaws in interrupts.
  static let ofInterrupts: [Flaw] = [
    Flaw("does not trigger", ["interrupt-eventfd", "interrupt-each", "interrupt-bool", "interrupt-replaced"]) {
      $0.sets(0x21) && $0.half(16) > 0 || $0.sets(0x22) ? .done : .pass
    },
    Flaw("triggers the first whichever is meant", ["interrupt-each"]) {
      if $0.sets(0x21), $0.half(16) > 0 { $0.put(0, 12, 4) }
      return .pass
    },
    Flaw("takes every truth value for true", ["interrupt-bool"]) {
      if $0.sets(0x22) { for i in 20..<$0.payload.count { $0.payload[i] = 1 } }
      return .pass
    },
    Flaw("keeps the first eventfd", ["interrupt-replaced"]) {
      $0.sets(0x24) && !$0.files.isEmpty && $0.mail.count("set") > 0 ? .done : .pass
    },
    Flaw("does not take an eventfd away", ["interrupt-taken"]) { $0.sets(0x24) && $0.files.isEmpty ? .done : .pass },
    Flaw("does not take eventfds away", ["interrupt-off"]) { $0.sets(0x21) && $0.half(16) == 0 ? .done : .pass },
    Flaw("refuses to mask", ["interrupt-mask"]) { $0.sets(0x09) ? .refuse(22) : .pass },
    Flaw("dies of more eventfds than vectors", ["interrupt-descriptors"], .crashed) {
      $0.asks(Number.set) && $0.files.count > Int($0.half(16)) ? .die : .pass
    },
    Flaw("forgets the eventfds that it takes", ["interrupt-eventfd", "interrupt-delivered"]) {
      $0.sets(0x24) ? .done : .pass
    },
  ]
}
