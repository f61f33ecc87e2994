internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// Clients that come and go.
  static let lifetime: [Check] = [
    Check("next-client", "connection", "A device's state outlives its client.") { context throws(Finding) in
      guard !context.endsWithConnection else { throw .notOffered("the server ends with its client") }
      let session = try context.session()
      try session.write(Part.configuration, Session.command, [6, 0])
      session.connection.close()
      let next = try context.session()
      let read = try next.configuration(Session.command, 2) & 6
      try expect(read == 6, "the command register has \(hex(read)), and the last client had written 0x6")
      return "what one client wrote to the command register the next one reads"
    },
    Check("next-mappings", "connection", "A client's mappings go with it.") { context throws(Finding) in
      let session = try context.session()
      try session.map(ClientMemory.base, 1 << 20)
      session.connection.close()
      let next = try context.session()
      try next.map(ClientMemory.base, 1 << 20)
      return "the next client finds room there"
    },
    Check("next-interrupts", "connection", "A client's eventfds go with it.", needs: .vectors(1)) {
      context throws(Finding) in
      let event = try rethrowing(EventFD(), saying: Finding.notChecked)
      let first = try context.connection()
      try first.ask(
        .setInterrupts, Wire.interrupts(SetFlags.eventfd | SetFlags.trigger, Part.msix, 0, 1),
        descriptors: [event.rawValue])
      first.close()
      let next = try context.connection()
      _ = try next.provoke(.setInterrupts, Wire.interrupts(SetFlags.none | SetFlags.trigger, Part.msix, 0, 1))
      try expect((try? event.wait(timeout: .zero)) != true, "the last client's eventfd was signalled")
      return "the last client's eventfd was not signalled"
    },
    Check("many-clients", "connection", "Many clients are served, one after the other.") { context throws(Finding) in
      for round in 0..<32 {
        let session = try context.session()
        if round % 2 == 0 { try session.map(ClientMemory.base, 1 << 20) }
        try expect(try session.connection.isAnswering(), "client \(round) was not answered")
        session.connection.close()
      }
      return "32"
    },
    Check("two-clients", "connection", "A second client does not disturb the first.") { context throws(Finding) in
      let session = try context.session()
      try session.mapVisibly(ClientMemory.base, 1 << 20)
      var second: UnixSocket?
      do throws(HostError) {
        let socket = try context.subject.connect(timeout: context.quiet)
        let header = Header(
          id: 1, command: Command.version.rawValue, size: UInt32(Header.byteCount + Wire.proposal.count), flags: 0)
        try socket.send((header.encoded + Wire.proposal).span, timeout: context.quiet)
        second = socket
      } catch {}
      pause(context.quiet)
      try expect(try session.connection.isAnswering(), "the first client's connection was closed")
      try expect(try session.isMapped(ClientMemory.base, 4096), "the first client's mappings have gone")
      second?.shutdown()
      return second == nil ? "the second was refused" : "the second waits or was refused, and the first was served"
    },
    Check("device-restarts", "RESET", "A device works again for each client that resets and starts it.", needs: .driver)
    {
      context throws(Finding) in
      for _ in 0..<4 {
        let driven = try context.driven()
        try driven.map()
        try driven.roundTrip()
        // The next one meets the device as it was left: running.
        driven.session.connection.close()
      }
      return "four clients, each of which left it running"
    },
  ]
}
