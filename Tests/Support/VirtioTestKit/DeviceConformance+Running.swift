import DMA
import Virtio

/// What comes in between: faults, late answers, resets, moves to another process, calls.
extension DeviceConformance {
  func fault(_ session: ConformanceSession) throws {
    for request in requests {
      let half = [
        request.readable.prefix(request.readable.count / 2), request.readable.suffix(from: request.readable.count / 2),
      ].map { Array($0) }
      let room = [request.writable / 2, request.writable - request.writable / 2]
      let count = (session.readable(half) + session.writable(room)).count
      session.forget()
      for bad in 0..<count {
        let pieces = session.readable(half) + session.writable(room)
        try faults(session, pieces, at: pieces[bad].address) { session.faulting.fail(pieces[bad].address) }
        session.faulting.heal()
        try expectGood(session, "after a fault in buffer \(bad)")
        guard let paged = session.rig.paged else { continue }
        // The page is there, and not for this.
        let denied = session.readable(half) + session.writable(room)
        let page = denied[bad].address
        try faults(session, denied, at: page) {
          remap(session, paged, page, denied[bad].isWritable ? .read : .write)
        }
        remap(session, paged, page, .readWrite)
        try expectGood(session, "after buffer \(bad) was mapped for the other direction")
      }
      // The second page of a buffer: the fault is at its first byte, and nothing of the first page has moved.
      let place = session.allocate(8192) + 4090
      let straddling = LiteralDescriptor(place, 12, writable: request.writable > 0)
      session.rig.literal.write([UInt8](repeating: 0xee, count: 12), at: place)
      let pieces = request.writable > 0 ? session.readable([request.readable]) + [straddling] : [straddling]
      try faults(session, pieces, at: place + 6) { session.faulting.fail(place + 6) }
      session.faulting.heal()
      try expectGood(session, "after a fault in the middle of a buffer")
    }
  }

  private func remap(
    _ session: ConformanceSession, _ paged: PagedSpace, _ page: DMAAddress, _ permissions: DMAPermissions
  ) {
    paged.map(page, byteCount: 4096, to: session.rig.literal.guestAddress(page), permissions)
    paged.fence.drain()
  }

  /// Posts a chain with a page taken away between a good one before and a good one after it.
  private func faults(
    _ session: ConformanceSession, _ pieces: [LiteralDescriptor], at address: DMAAddress, _ spoil: () -> Void
  ) throws {
    let request = requests[0]
    let before = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
    spoil()
    let known = session.faulting.faults.count
    let n = try session.post(pieces)
    let after = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
    try session.serve()
    let told = session.faulting.faults.dropFirst(known)
    session.expect(told.count == 1 && told.first?.address == address, "the fault at \(address) is told as \(told)")
    let end = pieces.last { $0.isWritable && $0.length > 0 }.map { ($0.address.rawValue + UInt64($0.length) - 1) >> 12 }
    if endsInStatus, end == nil || end == address.rawValue >> 12 {
      return try expectStopped(session, by: n, "a request whose status cannot be reached")
    }
    session.expect(
      session.isAnswered(before, request) && session.isAnswered(after, request),
      "a neighbour of a request that faults is not answered")
    session.expect(
      session.used(n) == 0, "a request that faults is used with \(session.used(n).map { "\($0)" } ?? "nothing")")
    // Only the last byte, where a status may be, is written of such a chain.
    let bytes = session.bytes(n)
    session.expect(bytes.dropLast().allSatisfy { $0 == 0xee }, "bytes of a request that faults were written")
    session.forget()
  }

  func ringFault(_ session: ConformanceSession) throws {
    let layout = session.rig.layout
    for area in [layout.descriptorArea, layout.driverArea, layout.deviceArea] {
      try expectGood(session, "before a ring's page goes")
      session.faulting.fail(area)
      let request = requests[0]
      let n = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
      try session.serve()
      session.expect(session.harness.hasFailed(0), "the queue goes on without the page of its ring at \(area)")
      session.expect(session.used(n) == nil, "a chain is used through a ring that is not there")
      session.harness.reset()
      session.faulting.heal()
      session.abandon()
      try session.startAfresh()
    }
    try expectGood(session, "after the ring's pages came back")
  }

  func late(_ session: ConformanceSession) throws {
    // Physical addresses never wait.
    guard let paged = session.rig.paged else { return }
    for request in requests {
      let half = [
        request.readable.prefix(request.readable.count / 2), request.readable.suffix(from: request.readable.count / 2),
      ].map { Array($0) }
      let room = [request.writable / 2, request.writable - request.writable / 2]
      let pieces = session.readable(half) + session.writable(room)
      for piece in pieces {
        paged.holdBack(piece.address)
        paged.fence.drain()
        let n = try session.post(pieces)
        session.publish()
        session.kick()
        session.expect(session.harness.isPending(0), "no queue waits for the page at \(piece.address)")
        session.reap()
        session.expect(session.used(n) == nil, "a chain is used before its memory is there")
        session.expect(
          !session.bytes(n).contains { $0 != 0xee }, "a chain is written before all of its memory is there")
        paged.answer(piece.address)
        session.kick()
        try session.settle()
        session.reap()
        session.check()
        session.expect(session.isAnswered(n, request), "a request whose page came late is not answered")
        for writable in pieces where writable.isWritable {
          session.rig.literal.write([UInt8](repeating: 0xee, count: Int(writable.length)), at: writable.address)
        }
        session.finish(n)
      }
      session.forget()
      // And a page of the ring.
      for area in [session.rig.layout.descriptorArea, session.rig.layout.driverArea, session.rig.layout.deviceArea] {
        paged.holdBack(area)
        paged.fence.drain()
        let n = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
        session.publish()
        session.kick()
        session.expect(session.harness.isPending(0), "no queue waits for the ring's page at \(area)")
        paged.answer(area)
        session.kick()
        try session.settle()
        session.reap()
        session.check()
        session.expect(session.isAnswered(n, request), "a request is not answered after the ring's page came late")
        session.forget()
      }
    }
    session.expect(session.faulting.faults.isEmpty, "what is late is no fault: \(session.faulting.faults)")
  }

  func reset(_ session: ConformanceSession) throws {
    for lap in 0..<4 {
      var posted: [(Int, Request)] = []
      while session.room(for: 2) > 0, posted.count < 60 {
        let request = requests[posted.count % requests.count]
        posted.append(
          (try session.post(session.readable([request.readable]) + session.writable([request.writable])), request))
      }
      session.publish()
      // The first lap resets before the device has looked.
      if lap > 0 { session.kick() }
      session.harness.reset()
      session.reap()
      session.check()
      for (n, request) in posted where session.used(n) != nil {
        session.expect(session.isAnswered(n, request), "a request is used at a reset, and not answered")
      }
      // All memory is the driver's again.
      session.remember()
      session.abandon()
      try session.drainCompletions()
      session.kick()
      session.check()
      try session.startAfresh()
      try expectGood(session, "after a reset")
    }
  }

  func resume(_ session: ConformanceSession) throws {
    for lap in 0..<4 {
      for _ in 0..<2 { try expectGood(session, "before the queue stops") }
      var posted: [(Int, Request)] = []
      for i in 0..<min(session.room(for: 2), 20) {
        let request = requests[i % requests.count]
        posted.append(
          (try session.post(session.readable([request.readable]) + session.writable([request.writable])), request))
      }
      session.publish()
      // Every other time the chains are with the device when it stops.
      if lap % 2 == 1 { session.kick() }
      guard var state = session.harness.stop(0) else {
        session.expect(false, "a running queue has no state")
        return
      }
      session.reap()
      // A front-end keeps no used index of a split ring: that one is in the ring.
      if !session.rig.kind.isPacked, lap >= 2 { state.used = nil }
      try session.replaceHandler(resumingAt: state)
      session.kick()
      try session.settle()
      session.reap()
      session.check()
      for (i, (n, request)) in posted.enumerated() {
        session.expect(
          session.isAnswered(n, request), "request \(i) of \(posted.count) is not answered by the successor")
      }
      session.forget()
    }
    try expectGood(session, "after the queue went on elsewhere")
  }

  func calls(_ session: ConformanceSession) throws {
    func serve() throws {
      let request = requests[0]
      for _ in 0..<3 {
        _ = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
      }
      try session.serve()
      session.forget()
    }
    for _ in 0..<20 {
      session.rig.ring.refuseCalls()
      let quiet = session.harness.calls[0, default: 0]
      try serve()
      session.expect(session.harness.calls[0, default: 0] == quiet, "a call comes that was not wanted")
      session.rig.ring.wantCalls()
      try serve()
      session.expect(session.harness.calls[0, default: 0] > quiet, "no call comes where one is wanted")
      guard session.rig.kind.eventIndex, session.rig.kind.driver == .literal else { continue }
      // Three chains of two descriptors: three entries of a split ring, or six slots.
      session.rig.ring.wantCall(after: 2)
      let before = session.harness.calls[0, default: 0]
      try serve()
      session.expect(session.harness.calls[0, default: 0] > before, "no call comes where the event index wants one")
    }
  }
}
