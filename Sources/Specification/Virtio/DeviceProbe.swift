/// What has to be known of a kind of device to try the transport and the rings under it, with requests that change
/// nothing: which queue takes them, what they look like, how their answers are judged.
///
/// Each kind's is a value beside what else is known of the kind; `sluice check` has no other knowledge of devices.
public struct DeviceProbe: Sendable, CustomStringConvertible {
  /// What devices of this kind are called: `blk`.
  public let name: String
  /// The queue that requests go to.
  public var queue = 0
  /// How many queues a driver sets up before the device works.
  public var queueCount = 1
  /// Whether GET_QUEUE_NUM counts pairs of queues.
  public var countsQueuePairs = false
  /// Whether requests are consumed on a disabled ring, and a ring can be stopped and started by itself: so it is of
  /// network devices alone.
  public var ringsStopAlone = false
  /// Whether the device writes into the first device-writable piece of a request, so that one can see where it writes.
  public var writes = true
  /// Whether an answer says by itself that the request failed, so that a count of written bytes alone claims nothing.
  public var answersHaveStatus = true
  /// Whether the same request always brings the same bytes.
  public var answersAreAlike = false
  /// Bytes of configuration space that every device of the kind has (§2.5).
  public var configurationSize = 8
  /// Descriptors of a long ring, which devices of this kind are known to take.
  public var longRing: UInt16 = 256
  /// Feature bits below 24, which belong to the kind (§2.2), that devices of this kind may offer.
  public var features: Set<Int> = []
  /// Of these every device of the kind is known to offer one; empty where there are devices that offer none.
  public var usualFeatures: Set<Int> = []
  /// The same harmless request every time.
  public var request: Request
  /// A harmless request of so many pieces, or of few, that a device can answer at once; nil: ``request`` is the one
  /// there is.
  public var quickRequest: (@Sendable (_ pieces: Int) -> Request)?
  /// What is wrong with an answer to ``request``, in half a sentence, or nil.
  public var fault: @Sendable (Answer) -> String?

  /// A probe of the usual shape; a kind that differs says so.
  ///
  /// - Parameter fault: what is wrong with an answer to `request`, in half a sentence, or nil.
  public init(_ name: String, request: Request, fault: @escaping @Sendable (Answer) -> String? = { _ in nil }) {
    self.name = name
    self.request = request
    self.fault = fault
  }

  public var description: String { name }

  /// Queues a front-end may name, where GET_QUEUE_NUM says `count`.
  public func queueLimit(_ count: Int) -> Int { countsQueuePairs ? 2 * count : count }

  /// A request, as a driver lays it out.
  public struct Request: Sendable {
    /// The bytes of each device-readable piece.
    public var readable: [[UInt8]]
    /// Bytes of each device-writable piece.
    public var writable: [Int]
    /// How many buffers it consists of.
    public var pieces: Int { readable.count + writable.count }

    public init(readable: [[UInt8]] = [], writable: [Int] = []) {
      self.readable = readable
      self.writable = writable
    }
  }

  /// What came of a request.
  public struct Answer: Sendable {
    /// The bytes that the device says it has written.
    public var written: UInt32
    /// What each device-writable piece holds.
    public var pieces: [[UInt8]]
    /// What the first piece held after the first request; nil for the first.
    public var reference: [UInt8]?

    public init(written: UInt32, pieces: [[UInt8]], reference: [UInt8]? = nil) {
      self.written = written
      self.pieces = pieces
      self.reference = reference
    }
  }

  /// What pieces are filled with before a device writes to them.
  public static let blank: UInt8 = 0xa5

  /// 32-bit little-endian words as bytes.
  public static func words(_ words: [UInt32]) -> [UInt8] {
    words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } }
  }
}
