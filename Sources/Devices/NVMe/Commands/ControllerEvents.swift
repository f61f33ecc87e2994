/// Asynchronous events, and the requests that wait for them (5.2).
struct ControllerEvents {
  /// Events of the error type, by what the controller says of them.
  enum Event: UInt32 {
    case invalidDoorbellRegister = 0
    case invalidDoorbellValue = 1
  }
  /// AERL, and one.
  static let maxRequests = 4

  private var requests: [UInt16] = []
  private var raised: [Event] = []
  /// An event was reported: the next one of its type waits until the driver has read the log page.
  private var isMasked = false

  /// An event happened; repeated events are reported once.
  mutating func raise(_ event: Event) {
    if !raised.contains(event) { raised.append(event) }
  }

  /// Keeps a request. False: there are too many.
  mutating func keep(_ identifier: UInt16) -> Bool {
    guard requests.count < Self.maxRequests else { return false }
    requests.append(identifier)
    return true
  }

  func holds(_ identifier: UInt16) -> Bool { requests.contains(identifier) }
  mutating func forget(_ identifier: UInt16) {
    if let i = requests.firstIndex(of: identifier) { requests.remove(at: i) }
  }

  var canAnswer: Bool { !isMasked && !raised.isEmpty && !requests.isEmpty }

  /// The oldest request, and what it is answered: the type in bits 2:0, what happened in 15:8, the log page in 23:16.
  mutating func answer() -> (identifier: UInt16, result: UInt32)? {
    guard canAnswer else { return nil }
    isMasked = true
    let event = raised.removeFirst()
    return (requests.removeFirst(), event.rawValue << 8 | UInt32(ControllerLogs.Page.errors.rawValue) << 16)
  }

  /// The driver has read the log page of errors.
  mutating func unmask() { isMasked = false }
}
