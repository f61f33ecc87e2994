public import Virtio

/// What every device of any kind has to do: the same requests, well-formed and odd, put to it in every way in which a
/// driver and a device can meet. One test per device runs the whole battery:
///
///     @Test(arguments: DeviceConformance.Check.allCases, DeviceConformance.meetings)
///     func conforms(check: DeviceConformance.Check, meeting: RingCase) throws {
///       #expect(try DeviceConformance(requests: [good]) { try FooDevice() }.violations(of: check, as: meeting) == [])
///     }
public struct DeviceConformance {
  /// A request that the device serves, whenever it is asked, with an answer that differs from every wrong one.
  public struct Request {
    public var readable: [UInt8]
    /// Bytes of device-writable memory, filled with 0xEE.
    public var writable: Int
    /// Whether this is the answer: the used length, and all device-writable bytes.
    public var isAnswered: (_ used: Int, _ bytes: [UInt8]) -> Bool

    public init(readable: [UInt8] = [], writable: Int, isAnswered: @escaping (_ used: Int, _ bytes: [UInt8]) -> Bool) {
      self.readable = readable
      self.writable = writable
      self.isAnswered = isAnswered
    }
  }

  public enum Check: String, CaseIterable, Sendable, CustomStringConvertible {
    case whole = "requests are served, one by one and a ring full of them, more often than the ring is long"
    case pieces = "a request means the same however it is cut into descriptors"
    case nothing = "descriptors of no bytes are nothing, wherever they point"
    case short = "a request that is cut short comes back"
    case long = "a request with more than it needs comes back"
    case oneSided = "a request with only readable or only writable memory comes back"
    case fault = "a buffer that cannot be reached costs its own request and no other"
    case ringFault = "a ring that cannot be reached stops its queue, and a reset makes it well"
    case late = "a translation that comes late is waited for, and nothing is done twice"
    case reset = "after a reset in flight nothing is written, and the device starts afresh"
    case resume = "a queue goes on where it was stopped, with another handler"
    case calls = "used buffer notifications come when they are wanted, and not when not"
    public var description: String { rawValue }
  }

  /// {split, packed} × {platform, physical} × {direct, indirect} × {event index} × {literal ring, our driver's queue}.
  public static var meetings: [RingCase] {
    RingCase.matrix.filter { !$0.inOrder }.map {
      var meeting = $0
      meeting.size = $0.isPacked ? 45 : 64
      return meeting
    }
  }

  let requests: [Request]
  /// Bytes of the configuration space that a driver may write.
  let writableConfiguration: Range<Int>
  /// Whether a request's last device-writable byte is its status. Where it cannot be written the device needs a reset:
  /// given back, the old byte there would pass for its status.
  let endsInStatus: Bool
  let make: () throws -> any VirtioDevice

  /// - Parameters:
  ///   - requests: at least one, with at most 4096 bytes a side.
  ///   - make: a device as if it had just been switched on.
  public init(
    requests: [Request], writableConfiguration: Range<Int> = 0..<0, endsInStatus: Bool = false,
    make: @escaping () throws -> any VirtioDevice
  ) {
    precondition(!requests.isEmpty && requests.allSatisfy { $0.readable.count <= 4096 && $0.writable <= 4096 })
    self.requests = requests
    self.writableConfiguration = writableConfiguration
    self.endsInStatus = endsInStatus
    self.make = make
  }

  /// What the device does against the rules, in words; empty when all is well.
  public func violations(of check: Check, as meeting: RingCase) throws -> [String] {
    let session = try ConformanceSession(try make(), as: meeting)
    do {
      switch check {
      case .whole: try whole(session)
      case .pieces: try pieces(session)
      case .nothing: try nothing(session)
      case .short: try short(session)
      case .long: try long(session)
      case .oneSided: try oneSided(session)
      case .fault: try fault(session)
      case .ringFault: try ringFault(session)
      case .late: try late(session)
      case .reset: try reset(session)
      case .resume: try resume(session)
      case .calls: try calls(session)
      }
    } catch is ConformanceSession.RingIsUseless {
      session.expect(false, "the ring cannot be used any more: chains do not come back, or are lied about")
    }
    return session.violations
  }

  /// Every good request, one after the other, is answered.
  func expectGood(_ session: ConformanceSession, _ when: @autoclosure () -> String) throws {
    for (i, request) in requests.enumerated() {
      let n = try session.post(session.readable([request.readable]) + session.writable([request.writable]))
      try session.serve()
      session.expect(session.isAnswered(n, request), "request \(i) is not answered \(when())")
      session.forget()
    }
  }

  /// A chain whose status cannot be written has ended the queue, and a reset makes it well.
  func expectStopped(_ session: ConformanceSession, by n: Int, _ shape: @autoclosure () -> String) throws {
    session.expect(session.harness.hasFailed(0), "\(shape()) does not stop the queue")
    session.expect(session.used(n) == nil, "\(shape()) comes back, without a status")
    session.harness.reset()
    session.faulting.heal()
    session.abandon()
    try session.startAfresh()
  }

  /// Whether such a chain has a place for a status.
  func hasStatus(_ chain: [LiteralDescriptor]) -> Bool { chain.contains { $0.isWritable && $0.length > 0 } }
}
