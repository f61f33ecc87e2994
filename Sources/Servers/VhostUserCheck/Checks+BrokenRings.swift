internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  private static let nowhere: UInt64 = 0x6600_0000_0000

  /// A ring that a driver broke: the back-end survives, answers, and serves the ring when it is set up again.
  private static func broken(
    _ name: String, _ sentence: String, _ features: Features = [], rule: String = "R091",
    _ place: @escaping @Sendable (Session, RawDescriptor.Flags) throws(Finding) -> Void
  ) -> Check {
    Check(
      name, rule, sentence.dropLast() + ": the connection lives, and the ring works when it is set up again.",
      features: features
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: features))
      try place(session, context.device.request.readable.isEmpty ? .write : [])
      session.settle()
      if let end = try refusal({ () throws(FrontendError) in _ = try session.frontend.ask(.getFeatures) }) {
        throw .broken("the driver broke its ring, and the back-end gave up the whole device for it: \(end)")
      }
      try recover(session)
      return "it lives, answers, and served the ring after it was set up again"
    }
  }

  /// Rings and chains that break the rules.
  static let brokenRings: [Check] =
    [
      broken("available-far", "An available index further ahead than the ring is long.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind)], heads: [0], index: 64 + 5)
      },
      broken("available-back", "An available index that goes back.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind)], heads: [0], index: 0xffff)
      },
      broken("head-outside", "A head that is no descriptor of the ring.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind)], heads: [64 + 3])
      },
      broken("head-far", "A head of 65535.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind)], heads: [0xffff])
      },
      broken("next-outside", "A chain that goes on outside the ring.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind.union(.next), next: 64 + 3)])
      },
      broken("loop", "A chain that is a loop.") { session, kind in
        session.offer([
          RawDescriptor(session.first.rawValue, 16, kind.union(.next), next: 1),
          RawDescriptor(session.first.rawValue, 16, kind.union(.next), next: 0),
        ])
      },
      broken("readable-after-writable", "A device-readable descriptor behind a device-writable one.") { session, _ in
        session.offer([
          RawDescriptor(session.first.rawValue, 16, [.write, .next], next: 1),
          RawDescriptor(session.first.rawValue, 16),
        ])
      },
      broken("address-outside", "A buffer that lies in no memory.") { session, kind in
        session.offer([RawDescriptor(nowhere, 512, kind)])
      },
      broken("address-runs-out", "A buffer that starts in memory and ends behind it.") { session, kind in
        session.offer([RawDescriptor(session.space.region.guestAddress + DeviceSpace.byteCount - 16, 4096, kind)])
      },
      broken("address-wraps", "A buffer that passes 2^64.", rule: "R059") { session, kind in
        session.offer([RawDescriptor(.max - 15, 4096, kind)])
      },
      broken("length-huge", "A buffer of 4 GiB less a byte.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 0xffff_ffff, kind)])
      },
      broken("length-zero", "A descriptor of no bytes.", rule: "R055") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 0, kind)])
      },
      broken("only-readable", "A chain with one byte to read and nothing to write.") { session, _ in
        session.offer([RawDescriptor(session.first.rawValue, 1)])
      },
      broken("only-writable", "A chain with one byte to write and nothing to read.") { session, _ in
        session.offer([RawDescriptor(session.first.rawValue, 1, .write)])
      },
      broken("same-head-twice", "A chain that is made available twice at once.") { session, kind in
        session.offer([RawDescriptor(session.first.rawValue, 16, kind)], heads: [0, 0])
      },
      broken("indirect-not-agreed", "An indirect table that was not negotiated.") { session, kind in
        table(session, [RawDescriptor(session.first.rawValue + 64, 16, kind)])
      },
    ] + brokenTables + brokenPacked

  private static let brokenTables: [Check] = [
    broken("indirect-odd", "An indirect table of 20 bytes.", .indirectDescriptors) { session, kind in
      table(session, [RawDescriptor(session.first.rawValue + 64, 16, kind), RawDescriptor(0, 0)], count: 20)
    },
    broken("indirect-empty", "An indirect table of no bytes.", .indirectDescriptors) { session, _ in
      table(session, [], count: 0)
    },
    broken("indirect-huge", "An indirect table of almost 4 GiB.", .indirectDescriptors) { session, kind in
      table(
        session, [RawDescriptor(session.first.rawValue + 64, 16, kind.union(.next), next: 0xfff0)], count: 0xffff_fff0)
    },
    broken("indirect-nested", "An indirect table in an indirect table.", .indirectDescriptors) { session, _ in
      table(session, [RawDescriptor(session.first.rawValue, 16, .indirect)])
    },
    broken("indirect-loop", "A chain in an indirect table that is a loop.", .indirectDescriptors) { session, kind in
      table(session, [RawDescriptor(session.first.rawValue + 64, 16, kind.union(.next), next: 0)])
    },
    broken("indirect-next-outside", "A chain that goes on outside its table.", .indirectDescriptors) { session, kind in
      table(session, [RawDescriptor(session.first.rawValue + 64, 16, kind.union(.next), next: 9)])
    },
    broken("indirect-and-next", "An indirect table and another descriptor behind it.", .indirectDescriptors) {
      session, kind in
      table(session, [RawDescriptor(session.first.rawValue + 64, 16, kind)], flags: [.indirect, .next])
    },
    broken("indirect-outside", "An indirect table that lies in no memory.", .indirectDescriptors) { session, _ in
      session.offer([RawDescriptor(nowhere, 64, .indirect)])
    },
  ]

  private static let brokenPacked: [Check] = [
    broken("packed-endless", "A packed chain as long as the ring, without an end.", .ringPacked) { session, kind in
      session.offer((0..<64).map { _ in RawDescriptor(session.first.rawValue, 16, kind.union(.next)) })
    },
    broken("packed-id", "A packed buffer ID beyond the ring.", .ringPacked) { session, kind in
      session.offer([RawDescriptor(session.first.rawValue, 16, kind, id: 0xffff)])
    },
    broken("packed-outside", "A packed descriptor whose buffer lies in no memory.", .ringPacked) { session, kind in
      session.offer([RawDescriptor(nowhere, 512, kind)])
    },
    broken("packed-wraps", "A packed descriptor whose buffer passes 2^64.", .ringPacked, rule: "R059") {
      session, kind in
      session.offer([RawDescriptor(.max - 15, 4096, kind)])
    },
    broken("packed-zero", "A packed descriptor of no bytes.", .ringPacked, rule: "R055") { session, kind in
      session.offer([RawDescriptor(session.first.rawValue, 0, kind)])
    },
    broken("packed-order", "A packed chain that goes back from writable to readable.", .ringPacked) { session, _ in
      session.offer([
        RawDescriptor(session.first.rawValue, 16, [.write, .next]), RawDescriptor(session.first.rawValue, 16),
      ])
    },
    broken("packed-table", "A packed ring's indirect table of no bytes.", [.ringPacked, .indirectDescriptors]) {
      session, _ in
      session.offer([RawDescriptor(session.first.rawValue, 0, .indirect)])
    },
  ]

  /// Puts a table at the start of the probe's first page and makes a descriptor available that leads there.
  private static func table(
    _ session: Session, _ entries: [RawDescriptor], count: UInt32? = nil, flags: RawDescriptor.Flags = .indirect
  ) {
    session.space.write(entries.flatMap(\.split), to: session.first)
    session.offer([
      RawDescriptor(session.first.rawValue, count ?? UInt32(16 * entries.count), flags, next: 1),
      RawDescriptor(session.first.rawValue, 16),
    ])
  }
}
