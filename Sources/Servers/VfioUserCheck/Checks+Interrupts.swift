internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// DEVICE_SET_IRQS in all its forms.
  static let interrupts: [Check] = [
    Check(
      "interrupt-eventfd", "SET_IRQS", "An eventfd that was given for a vector is signalled when it is triggered.",
      needs: .vectors(1)
    ) {
      context throws(Finding) in
      let line = try Line(context, 1)
      try line.set(SetFlags.none | SetFlags.trigger, 0, 1)
      try line.expectSignals([true])
      try line.set(SetFlags.none | SetFlags.trigger, 0, 1)
      try line.expectSignals([true])
      return "twice"
    },
    Check("interrupt-each", "SET_IRQS", "Each vector has its own eventfd.", needs: .vectors(2)) {
      context throws(Finding) in
      let line = try Line(context, 2)
      try line.set(SetFlags.none | SetFlags.trigger, 1, 1)
      try line.expectSignals([false, true])
      try line.set(SetFlags.none | SetFlags.trigger, 0, 1)
      try line.expectSignals([true, false])
      return "the second alone, then the first alone"
    },
    Check(
      "interrupt-bool", "SET_IRQS", "With truth values, what is true is triggered and nothing else.", needs: .vectors(2)
    ) {
      context throws(Finding) in
      let line = try Line(context, 2)
      try line.set(SetFlags.bool | SetFlags.trigger, 0, 2, truths: [0, 1])
      try line.expectSignals([false, true])
      try line.set(SetFlags.bool | SetFlags.trigger, 0, 2, truths: [1, 0])
      try line.expectSignals([true, false])
      return "the second of two, then the first"
    },
    Check("interrupt-replaced", "SET_IRQS", "A second eventfd takes the place of the first.", needs: .vectors(1)) {
      context throws(Finding) in
      let line = try Line(context, 1)
      let second = try event()
      try line.set(SetFlags.eventfd | SetFlags.trigger, 0, 1, descriptors: [second.rawValue])
      try line.set(SetFlags.none | SetFlags.trigger, 0, 1)
      try expect(wait(second, context.patience), "the second eventfd was not signalled")
      try line.expectSignals([false])
      return "the second is signalled and the first is not"
    },
    Check("interrupt-taken", "SET_IRQS", "Without a descriptor a vector's eventfd is taken away.", needs: .vectors(1)) {
      context throws(Finding) in
      let line = try Line(context, 1)
      try line.set(SetFlags.eventfd | SetFlags.trigger, 0, 1)
      _ = try line.send(SetFlags.none | SetFlags.trigger, 0, 1)
      try line.expectSilence()
      return "it is not signalled any more"
    },
    Check("interrupt-off", "SET_IRQS", "A count of 0 takes all eventfds of a kind away.", needs: .vectors(1)) {
      context throws(Finding) in
      let line = try Line(context, min(2, context.count(ofInterrupt: Part.msix)))
      try line.set(SetFlags.none | SetFlags.trigger, 0, 0)
      _ = try line.send(SetFlags.none | SetFlags.trigger, 0, 1)
      try line.expectSilence()
      return "none is signalled any more"
    },
    Check(
      "interrupt-mask", "SET_IRQS", "Masking and unmasking work where they are offered, and are refused elsewhere.",
      needs: .vectors(1)
    ) {
      context throws(Finding) in
      let line = try Line(context, 1)
      let info = try line.connection.ask(.getInterruptInfo, Wire.words(16, 0, Part.msix, 0))
      let isOffered = Wire.word(info, 4) & 2 != 0
      for flags in [SetFlags.none | SetFlags.mask, SetFlags.none | SetFlags.unmask] {
        let reaction = try line.send(flags, 0, 1)
        if isOffered {
          if case .answered = reaction {
          } else {
            throw .broken("vectors are maskable, and flags \(hex(flags)) are refused")
          }
        } else {
          _ = try line.connection.survived(reaction)
        }
      }
      for flags in [SetFlags.bool | SetFlags.mask, SetFlags.bool | SetFlags.unmask] {
        _ = try line.connection.survived(try line.send(flags, 0, 1, truths: [1]))
      }
      let told = try event()
      let toBeTold = try line.send(SetFlags.eventfd | SetFlags.mask, 0, 1, descriptors: [told.rawValue])
      _ = try line.connection.survived(toBeTold)
      if isOffered {
        try line.set(SetFlags.none | SetFlags.trigger, 0, 1)
        try line.expectSignals([true])
      }
      return isOffered ? "masked, unmasked, and triggered then" : "not offered, and no harm done"
    },
    Check("interrupt-range", "SET_IRQS", "Vectors that do not exist are refused.") { context throws(Finding) in
      let connection = try context.connection()
      let count = context.count(ofInterrupt: Part.msix)
      var asked = 0
      for (start, many) in [(count, 1), (0, count + 1), (.max, 1), (.max, 2), (1, .max)] as [(UInt32, UInt32)] {
        let reaction = try connection.provoke(
          .setInterrupts, Wire.interrupts(SetFlags.none | SetFlags.trigger, Part.msix, start, many))
        _ = try connection.refused(reaction, "\(many) vectors from \(start) on, of \(count)")
        if reaction == .closed { return "it closed the connection" }
        asked += 1
      }
      return "\(asked) ranges were refused"
    },
    Check("interrupt-kind", "SET_IRQS", "Kinds of interrupts that do not exist are refused.") {
      context throws(Finding) in
      let connection = try context.connection()
      for index in [UInt32(context.interrupts.count), 0x7fff_ffff, .max] {
        let reaction = try connection.provoke(
          .setInterrupts, Wire.interrupts(SetFlags.none | SetFlags.trigger, index, 0, 1))
        _ = try connection.refused(reaction, "kind \(index)")
        if reaction == .closed { return "it closed the connection" }
      }
      return "three were refused"
    },
    Check(
      "interrupt-flags", "SET_IRQS", "Flags that name no form of data, no action, or two, are refused.",
      needs: .vectors(1)
    ) {
      context throws(Finding) in
      let connection = try context.connection()
      for flags in [
        0, SetFlags.none, SetFlags.trigger, SetFlags.none | SetFlags.bool | SetFlags.trigger,
        SetFlags.none | SetFlags.mask | SetFlags.trigger, 0xffff_ffff,
      ] as [UInt32] {
        let reaction = try connection.provoke(.setInterrupts, Wire.interrupts(flags, Part.msix, 0, 1, truths: [1]))
        _ = try connection.refused(reaction, "flags \(hex(flags))")
        if reaction == .closed { return "it closed the connection" }
      }
      return "six were refused"
    },
    Check("interrupt-truths", "SET_IRQS", "Fewer truth values than vectors are refused.", needs: .vectors(2)) {
      context throws(Finding) in
      let connection = try context.connection()
      return try connection.refused(
        try connection.provoke(
          .setInterrupts, Wire.interrupts(SetFlags.bool | SetFlags.trigger, Part.msix, 0, 2, truths: [1])),
        "one truth value for two vectors")
    },
    Check(
      "interrupt-descriptors", "SET_IRQS",
      "More descriptors than vectors, or something else than an eventfd, do no harm.", needs: .vectors(1)
    ) {
      context throws(Finding) in
      let line = try Line(context, 1)
      let more = [try event(), try event(), try event()]
      // An array's elements end with its last use, and with them the descriptors.
      let reaction = try withExtendedLifetime(more) { () throws(Finding) in
        try line.send(SetFlags.eventfd | SetFlags.trigger, 0, 1, descriptors: more.map(\.rawValue))
      }
      let first = try line.connection.survived(reaction)
      guard try line.connection.isAnswering() else { return first }
      let second = try line.connection.survived(
        try line.send(SetFlags.eventfd | SetFlags.trigger, 0, 1, descriptors: [line.connection.memory.descriptor]))
      _ = try line.connection.survived(try line.send(SetFlags.none | SetFlags.trigger, 0, 1))
      return "more: \(first); a file: \(second)"
    },
    Check("interrupt-set-short", "SET_IRQS", "A payload that is too short is refused.") { context throws(Finding) in
      let connection = try context.connection()
      return try connection.refused(
        try connection.provoke(.setInterrupts, Wire.words(16, 33, 2, 0)), "DEVICE_SET_IRQS with a payload of 16 bytes")
    },
    Check("interrupt-delivered", "SET_IRQS", "A device's interrupt signals the eventfd of its vector.", needs: .driver)
    {
      context throws(Finding) in
      guard context.count(ofInterrupt: Part.msix) > 0 else { throw .notOffered("the device has no MSI-X vectors") }
      let event = try event()
      let driven = try context.driven(Setup(event: event.rawValue))
      try driven.map()
      // What starting the device brought.
      _ = try? event.drain()
      try driven.roundTrip()
      try expect(wait(event, context.patience), "a request was done, and no interrupt came")
      return "signalled when a request was done"
    },
  ]

  fileprivate static func event() throws(Finding) -> EventFD {
    try rethrowing(EventFD(), saying: Finding.notChecked)
  }
  fileprivate static func wait(_ event: EventFD, _ time: Duration) -> Bool { (try? event.wait(timeout: time)) == true }
}

/// The first vectors of a device, each with an eventfd.
private final class Line {
  let connection: Connection
  private let context: CheckContext
  private var events: [EventFD] = []

  init(_ context: CheckContext, _ count: UInt32) throws(Finding) {
    self.context = context
    connection = try context.connection()
    for _ in 0..<count { events.append(try Check.event()) }
    try set(SetFlags.eventfd | SetFlags.trigger, 0, count, descriptors: events.map(\.rawValue))
  }

  func send(
    _ flags: UInt32, _ start: UInt32, _ count: UInt32, truths: [UInt8] = [], descriptors: [Int32] = []
  ) throws(Finding) -> Reaction {
    try connection.provoke(
      .setInterrupts, Wire.interrupts(flags, Part.msix, start, count, truths: truths), descriptors: descriptors)
  }

  func set(
    _ flags: UInt32, _ start: UInt32, _ count: UInt32, truths: [UInt8] = [], descriptors: [Int32] = []
  ) throws(Finding) {
    switch try send(flags, start, count, truths: truths, descriptors: descriptors) {
    case .answered(let payload): try expect(payload.isEmpty, "the reply has a payload of \(payload.count) bytes")
    case .refused(let error):
      throw .broken("flags \(hex(flags)) for \(count) vectors from \(start) on were refused: \(error)")
    case .closed: throw .broken("the connection ended at flags \(hex(flags))")
    }
  }

  /// These eventfds, and no others, are signalled.
  func expectSignals(_ wanted: [Bool]) throws(Finding) {
    for (vector, event) in events.enumerated() where wanted[vector] {
      try expect(Check.wait(event, context.patience), "the eventfd of vector \(vector) was not signalled")
      _ = try? event.drain()
    }
    // Signals come before replies: a command's reply says that there is nothing more to come.
    try connection.ask(.getInfo, Wire.words(16, 0, 0, 0))
    for (vector, event) in events.enumerated() where !wanted[vector] {
      try expect(!Check.wait(event, .zero), "the eventfd of vector \(vector) was signalled too")
    }
  }

  func expectSilence() throws(Finding) {
    guard try connection.isAnswering() else { return }
    for (vector, event) in events.enumerated() {
      try expect(!Check.wait(event, .zero), "the eventfd of vector \(vector) was signalled")
    }
  }
}
