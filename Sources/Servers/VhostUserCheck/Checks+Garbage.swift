internal import Examination
internal import HostIO
internal import VhostUser

extension Check {
  /// Nonsense, the same every time.
  static let garbage: [Check] = [
    Check("random-messages", "garbage", "Messages of random numbers do no harm.") { context throws(Finding) in
      var random = Nonsense(seed: 0x510ce)
      var count = 0
      for _ in 0..<24 {
        let connection = try context.negotiatedRaw()
        for _ in 0..<16 {
          // SET_CONFIG is left out: it could be taken, and would change the device.
          let request = UInt32(random.next() % 46)
          if request == FrontendRequest.Kind.setConfiguration.rawValue
            || request == FrontendRequest.Kind.getFeatures.rawValue
          {
            continue
          }
          let payload = (0..<Int(random.next() % 80)).map { _ in
            UInt8(truncatingIfNeeded: random.next() % 3 == 0 ? random.next() : 0)
          }
          count += 1
          if try connection.provoke(request, payload) == .closed { break }
        }
        connection.socket.shutdown()
      }
      try context.session().roundTrip()
      return "\(count) of them on 24 connections, and a request was served afterwards"
    },
    Check("random-bytes", "garbage", "Bytes that are no messages do no harm.") { context throws(Finding) in
      var random = Nonsense(seed: 0xfeed)
      for _ in 0..<16 {
        let connection = try context.raw()
        _ = try connection.send((0..<256).map { _ in UInt8(truncatingIfNeeded: random.next()) })
        connection.socket.shutdown()
      }
      try context.session().roundTrip()
      return "16 times 256 bytes, and a request was served afterwards"
    },
  ]

  private struct Nonsense {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state >> 16
    }
  }
}
