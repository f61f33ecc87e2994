/// Asynchronous events, and the requests that wait for them (5.2).
struct ControllerEvents {
  /// Events that there are.
  enum Event {
    case invalidDoorbellRegister
    case invalidDoorbellValue
    case namespaceChanged

    /// What happened in bits 15:8, and its type in 2:0: 0 an error, 2 a notice.
    fileprivate var code: UInt32 {
      switch self {
      case .invalidDoorbellRegister: 0
      case .invalidDoorbellValue: 1 << 8
      case .namespaceChanged: 0 << 8 | 2
      }
    }
    /// The log page that tells more. Until it is read there is no other event of the type.
    fileprivate var page: ControllerLogs.Page { self == .namespaceChanged ? .changedNamespaces : .errors }
  }
  /// AERL, and one.
  static let maxRequests = 4
  /// The bit of OAES, and of the feature that enables them.
  static var namespaceNotices: UInt32 { 1 << 8 }

  private var requests: [CommandRecord] = []
  private var raised: [Event] = []
  /// Pages of events that were reported, and have not been read.
  private var unread: [ControllerLogs.Page] = []

  /// An event happened; repeated events are reported once.
  mutating func raise(_ event: Event) {
    if !raised.contains(event) { raised.append(event) }
  }

  /// Keeps a request. False: there are too many.
  mutating func keep(_ request: CommandRecord) -> Bool {
    guard requests.count < Self.maxRequests else { return false }
    requests.append(request)
    return true
  }

  func holds(_ identifier: UInt16) -> Bool { requests.contains { $0.identifier == identifier } }
  mutating func forget(_ identifier: UInt16) -> CommandRecord? {
    requests.firstIndex { $0.identifier == identifier }.map { requests.remove(at: $0) }
  }

  private var next: Int? { raised.firstIndex { !unread.contains($0.page) } }
  var canAnswer: Bool { !raised.isEmpty && !requests.isEmpty && next != nil }

  /// The oldest request, and what it is answered: the event, and the log page in 23:16.
  mutating func answer() -> (request: CommandRecord, result: UInt32)? {
    guard !requests.isEmpty, let next else { return nil }
    let event = raised.remove(at: next)
    unread.append(event.page)
    return (requests.removeFirst(), event.code | UInt32(event.page.rawValue) << 16)
  }

  /// The driver has read a log page.
  mutating func didRead(_ page: ControllerLogs.Page) { unread.removeAll { $0 == page } }
}
