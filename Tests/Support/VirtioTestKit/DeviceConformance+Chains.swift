import DMA
import Virtio

/// Chains of every shape: what they may cost, and what they must still do.
extension DeviceConformance {
  func whole(_ session: ConformanceSession) throws {
    try expectGood(session, "alone")
    // Often enough for the ring to go round.
    for lap in 0..<4 {
      var posted: [(Int, Request)] = []
      while session.room(for: 2) > 0, posted.count < 60 {
        let request = requests[posted.count % requests.count]
        posted.append(
          (try session.post(session.readable([request.readable]) + session.writable([request.writable])), request))
      }
      try session.serve()
      for (i, (n, request)) in posted.enumerated() {
        session.expect(session.isAnswered(n, request), "request \(i) of a full ring is not answered, lap \(lap)")
      }
      session.forget()
    }
  }

  func pieces(_ session: ConformanceSession) throws {
    var random = SeededGenerator(11)
    for (i, request) in requests.enumerated() {
      func serve(_ readable: [Int], _ writable: [Int]) throws {
        let parts = Self.cut(request.readable, readable)
        let room = Self.cut([UInt8](repeating: 0, count: request.writable), writable).map(\.count)
        let n = try session.post(session.readable(parts) + session.writable(room))
        try session.serve()
        session.expect(
          session.isAnswered(n, request), "request \(i) cut at \(readable) and \(writable) is not answered")
        session.forget()
      }
      // Every place a cut can be where layouts have their fields, and at the end, where a status is.
      for at in 1..<max(2, min(request.readable.count, 24)) { try serve([at], []) }
      for at in 1..<max(2, min(request.writable, 8)) { try serve([], [at, request.writable - at]) }
      // A byte a descriptor.
      try serve(Array(1..<min(17, max(2, request.readable.count))), Array(1..<min(17, max(2, request.writable))))
      for _ in 0..<12 {
        try serve(
          (0..<Int.random(in: 0...8, using: &random)).map { _ in
            Int.random(in: 0...max(1, request.readable.count), using: &random)
          },
          (0..<Int.random(in: 0...8, using: &random)).map { _ in
            Int.random(in: 0...max(1, request.writable), using: &random)
          })
      }
    }
  }

  /// The parts of `bytes` between these places.
  private static func cut(_ bytes: [UInt8], _ places: [Int]) -> [[UInt8]] {
    let edges = ([0, bytes.count] + places.filter { (0...bytes.count).contains($0) }).sorted()
    return zip(edges, edges.dropFirst()).map { Array(bytes[$0..<$1]) }
  }

  func nothing(_ session: ConformanceSession) throws {
    // Nothing is mapped there, and no descriptor of bytes could end there.
    for address in [DMAAddress(0), DMAAddress(UInt64.max), DMAAddress(0x7fff_0000_0000)] {
      let empty = LiteralDescriptor(address, 0)
      let room = LiteralDescriptor(address, 0, writable: true)
      for request in requests {
        let n = try session.post(
          [empty] + session.readable([request.readable]) + [empty, empty, room] + session.writable([request.writable])
            + [room])
        try session.serve()
        session.expect(
          session.isAnswered(n, request), "a request between descriptors of no bytes at \(address) is not answered")
        session.forget()
      }
      for chain in [[empty], [room], [empty, room], [empty, empty, room, room]] {
        let n = try session.post(chain)
        try session.serve()
        if endsInStatus {
          try expectStopped(session, by: n, "a chain of \(chain.count) descriptors of no bytes")
          continue
        }
        session.expect(
          session.used(n) == 0,
          "\(session.used(n).map { "\($0)" } ?? "no") bytes written into \(chain.count) descriptors of none")
        session.forget()
      }
    }
    session.expect(session.faulting.faults.isEmpty, "descriptors of no bytes are looked up: \(session.faulting.faults)")
    try expectGood(session, "after descriptors of no bytes")
  }

  func short(_ session: ConformanceSession) throws {
    for request in requests {
      let readables = Set(
        [0, 1, request.readable.count - 1, request.readable.count] + Array(0..<min(24, request.readable.count)))
      let writables = Set([0, 1, 2, request.writable - 2, request.writable - 1, request.writable])
      for count in readables.sorted() where count >= 0 {
        for room in writables.sorted() where room >= 0 && room <= request.writable {
          if count > request.readable.count || count + room == 0
            || count + room == request.readable.count + request.writable
          {
            continue
          }
          try comesBack(session, session.readable([Array(request.readable.prefix(count))]) + session.writable([room]))
        }
      }
    }
    try expectGood(session, "after requests that were cut short")
  }

  func long(_ session: ConformanceSession) throws {
    let more = [UInt8](repeating: 0x5a, count: 70_000)
    for request in requests {
      let readable = [request.readable, more]
      try comesBack(session, session.readable(readable) + session.writable([request.writable]))
      try comesBack(session, session.readable([request.readable + more]) + session.writable([request.writable]))
      try comesBack(session, session.readable([request.readable]) + session.writable([request.writable, 70_000]))
      try comesBack(session, session.readable([request.readable]) + session.writable([70_000, request.writable]))
      try comesBack(session, session.readable(readable) + session.writable([request.writable, 70_000]))
      // As many pieces as a chain can have.
      let most = min(Int(session.rig.kind.size), session.rig.tableCapacity, 45)
      try comesBack(session, session.readable([[UInt8]](repeating: [7], count: most - 1)) + session.writable([1]))
      try comesBack(session, session.readable([[7]]) + session.writable([Int](repeating: 1, count: most - 1)))
    }
    try expectGood(session, "after requests that were too long")
  }

  func oneSided(_ session: ConformanceSession) throws {
    for request in requests {
      for count in [1, 15, 16, 17, 512, 4096] {
        try comesBack(session, session.readable([[UInt8](repeating: 3, count: count)]))
        try comesBack(session, session.writable([count]))
      }
      if !request.readable.isEmpty { try comesBack(session, session.readable([request.readable])) }
      if request.writable > 0 { try comesBack(session, session.writable([request.writable])) }
    }
    try expectGood(session, "after requests with one side only")
  }

  /// With any contents the chain comes back, and the queue goes on; unless nothing can say how it ended.
  private func comesBack(_ session: ConformanceSession, _ chain: [LiteralDescriptor]) throws {
    let shape = chain.map { "\($0.isWritable ? "w" : "r")\($0.length)" }.joined(separator: " ")
    let n = try session.post(chain)
    try session.serve()
    if endsInStatus, !hasStatus(chain) { return try expectStopped(session, by: n, "a chain of \(shape)") }
    session.expect(session.used(n) != nil, "a chain of \(shape) does not come back")
    session.expect(!session.harness.hasFailed(0), "a chain of \(shape) stops the queue")
    session.forget()
  }
}
