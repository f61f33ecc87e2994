internal import DMA
internal import Examination
internal import HostIO

/// What checks work with: a way to the server, and what is known of it.
final class CheckContext: CheckedServer {
  let subject: any CheckSubject
  let patience: Duration
  var endsWithConnection = false
  /// How long to look for something that must not happen.
  let quiet: Duration = .milliseconds(40)
  /// What it answered to VERSION.
  var offer = Offer()
  /// Its regions and interrupts.
  var regions: [Region] = []
  var interrupts: [UInt32] = []
  var deviceFlags: UInt32 = 0
  /// The first words of its configuration space: what kind of device it is.
  var identity = Identity()
  private var sockets: [UnixSocket] = []
  private var drivers: [any Probe] = []

  /// What a server says of itself.
  struct Offer {
    var major: UInt16 = 0, minor: UInt16 = 0
    var text = ""
    var capabilities: [String: JSONValue] = [:]

    func number(_ key: String, _ standard: UInt64) -> UInt64 {
      if case .number(let value)? = capabilities[key], value >= 0, value < 1e18 { return UInt64(value) }
      return standard
    }
    var writesSeveral: Bool { capabilities["write_multiple"] == .truth(true) }
  }

  /// A region as DEVICE_GET_REGION_INFO describes it.
  struct Region {
    var index: UInt32
    var size: UInt64
    var flags: UInt32
  }

  struct Identity {
    var vendor: UInt16 = 0, device: UInt16 = 0
    var classCode: UInt32 = 0
    var word: String { "\(Self.digits(vendor)):\(Self.digits(device))" }
    private static func digits(_ value: UInt16) -> String {
      let text = String(value, radix: 16)
      return String(repeating: "0", count: 4 - text.count) + text
    }
  }

  init(_ subject: any CheckSubject, patience: Duration) {
    self.subject = subject
    self.patience = patience
  }

  /// A connection on which nothing has been said.
  func raw(_ memory: ClientMemory? = nil) throws(Finding) -> Connection {
    var shown = memory
    if shown == nil { shown = try ClientMemory() }
    guard let shown else { throw .notChecked("there is no memory") }
    let end = ContinuousClock.now + patience
    while true {
      do throws(HostError) {
        let socket = try subject.connect(timeout: patience)
        sockets.append(socket)
        return Connection(socket, memory: shown, patience: patience)
      } catch {
        guard ContinuousClock.now < end else { throw Finding.broken("it cannot be connected to: \(error.reason)") }
      }
      try subject.getReady(endsWithConnection: endsWithConnection)
    }
  }

  /// A connection on which both sides agreed on a version.
  ///
  /// A server that is still busy with the end of the last one may refuse the next for a while.
  func connection(_ memory: ClientMemory? = nil) throws(Finding) -> Connection {
    let end = ContinuousClock.now + patience
    while true {
      let connection = try raw(memory)
      switch try connection.provoke(.version, Wire.proposal) {
      case .answered(let payload):
        offer = Offer(major: Wire.number(payload, 0, UInt16.self), minor: Wire.number(payload, 2, UInt16.self))
        offer.text = String(decoding: payload.dropFirst(4).prefix { $0 != 0 }, as: UTF8.self)
        if case .object(let all)? = JSONValue(offer.text), case .object(let mine)? = all["capabilities"] {
          offer.capabilities = mine
        }
        connection.transferLimit = offer.number("max_data_xfer_size", 1 << 20)
        return connection
      case .refused(let error): throw .broken("VERSION was refused: \(error)")
      case .closed:
        guard ContinuousClock.now < end else { throw .broken("it closes every connection") }
        try subject.getReady(endsWithConnection: endsWithConnection)
      }
    }
  }

  /// A connection whose client shows its memory.
  func session() throws(Finding) -> Session { Session(self, try connection()) }

  /// A session whose device is driven, or a finding that this one cannot be.
  func driven(_ setup: Setup = Setup()) throws(Finding) -> Driven {
    try driven(on: session(), setup)
  }
  func driven(on session: Session, _ setup: Setup = Setup()) throws(Finding) -> Driven {
    let driven = try Driven(session, setup)
    drivers.append(driven.probe)
    return driven
  }

  func isAnswered(_ socket: UnixSocket) throws(Finding) -> Bool {
    let connection = Connection(socket, memory: try ClientMemory(), patience: patience)
    return try connection.provoke(.version, Wire.proposal) != .closed
  }

  /// Ends all connections of the check.
  func closeAll() {
    for driver in drivers { driver.stop() }
    for socket in sockets { socket.shutdown() }
    drivers = []
    sockets = []
  }

  /// Learns what the server has.
  func survey() throws(Finding) {
    let connection = try connection()
    let info = try connection.ask(.getInfo, Wire.words(16, 0, 0, 0))
    deviceFlags = Wire.word(info, 4)
    regions = []
    interrupts = []
    for index in 0..<min(Wire.word(info, 8), 64) {
      // A server may refuse what a device of this kind need not have.
      guard case .answered(var region) = try connection.provoke(.getRegionInfo, Wire.region(index)) else { continue }
      // Flags whose capability there was no room for may be missing from the first answer.
      let needed = Wire.word(region, 0)
      if needed > 32, needed <= 64 << 10,
        case .answered(let whole) = try connection.provoke(.getRegionInfo, Wire.region(index, room: needed))
      {
        region = whole
      }
      regions.append(Region(index: index, size: Wire.long(region, 16), flags: Wire.word(region, 4)))
    }
    for index in 0..<min(Wire.word(info, 12), 64) {
      guard case .answered(let kind) = try connection.provoke(.getInterruptInfo, Wire.words(16, 0, index, 0)) else {
        interrupts.append(0)
        continue
      }
      interrupts.append(Wire.word(kind, 12))
    }
    if case .answered(let head) = try connection.provoke(.readRegion, Wire.access(Part.configuration, 0, 16)) {
      identity = Identity(
        vendor: Wire.number(head, 16, UInt16.self), device: Wire.number(head, 18, UInt16.self),
        classCode: Wire.word(head, 24) >> 8)
    }
  }

  func region(_ index: UInt32) -> Region? { regions.first { $0.index == index } }
  func count(ofInterrupt index: UInt32) -> UInt32 {
    interrupts.indices.contains(Int(index)) ? interrupts[Int(index)] : 0
  }
}
