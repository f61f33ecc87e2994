internal import DMA
internal import DriverDMA
internal import Examination
internal import HostIO

/// What a check wants of a driven device.
struct Setup {
  /// How the rings are mapped.
  var ringFlags = MapFlags.both
  /// Whether mappings have no descriptor: the server has to ask for every byte.
  var byMessage = false
  /// How long the start may take; nil: as long as anything.
  var start: Duration?
  /// Completions raise an interrupt of this vector, at this event.
  var event: Int32?
}

/// A request that ended.
enum Outcome: Equatable {
  case done
  case failed(String)
}

/// A driver that makes a device write into memory. One thread uses it, the connection's.
protocol Probe: AnyObject {
  /// The device, in a word.
  var name: String { get }
  /// Whether a request whose memory is not there ends, and the next are served; else all may have to be started again.
  var failsAlone: Bool { get }
  /// Bytes that one request can write: a number of pages.
  var most: UInt64 { get }
  /// The function's registers.
  var access: FunctionAccess { get }
  /// Makes the device write to memory.
  func request(_ data: [GuestSegment]) throws
  /// The end of a request, if one has ended.
  func reap() throws -> Outcome?
  /// Ends the driver.
  func stop()
}

extension Probe {
  /// Makes the device write `count` bytes, a number of pages, at a device address that begins a page.
  func submit(at address: UInt64, count: UInt64) throws(Finding) {
    do { try request([GuestSegment(GuestAddress(address), count: UInt32(count))]) } catch {
      throw .notChecked("a request could not be made: \(error)")
    }
    if let trouble = access.trouble { throw trouble }
  }

  /// Waits for a request to end; nil: none did.
  func finish(within time: Duration) throws(Finding) -> Outcome? {
    let end = ContinuousClock.now + time
    while true {
      do { if let outcome = try reap() { return outcome } } catch { throw .broken("\(error)") }
      guard ContinuousClock.now < end else { return nil }
      access.attend(.milliseconds(1))
      if let trouble = access.trouble { throw trouble }
    }
  }
}

/// A session with a device that is at work.
final class Driven {
  let session: Session
  let probe: any Probe
  private let setup: Setup
  var context: CheckContext { session.context }
  var memory: ClientMemory { session.memory }

  /// Where the data is that requests write, in the file and as the device sees it.
  static let dataOffset = ClientMemory.ringBytes
  static let data: UInt64 = 0x2_0000_0000

  /// Whether there is a driver for such a device.
  static func knows(_ identity: CheckContext.Identity) -> Bool {
    NVMeProbe.knows(identity) || VirtioProbe.knows(identity)
  }

  /// Maps the rings and starts the device.
  init(_ session: Session, _ setup: Setup) throws(Finding) {
    self.session = session
    self.setup = setup
    try session.map(
      ClientMemory.base, ClientMemory.ringBytes, flags: setup.ringFlags, setup.byMessage ? .nothing : .file)
    if NVMeProbe.knows(session.context.identity) {
      probe = try NVMeProbe(session, setup)
    } else {
      probe = try VirtioProbe(session, setup)
    }
  }

  /// Maps part of the file for data.
  func map(
    _ address: UInt64 = data, _ size: UInt64 = ClientMemory.page, offset: UInt64 = dataOffset,
    flags: UInt32 = MapFlags.both
  ) throws(Finding) {
    try session.map(address, size, offset: offset, flags: flags, setup.byMessage ? .nothing : .file)
  }

  /// One request that has to be served, with its data at a device address that leads to `offset`.
  func roundTrip(
    at address: UInt64 = data, count: UInt64 = ClientMemory.page, landing offset: UInt64 = dataOffset
  ) throws(Finding) {
    memory.poison(at: offset, count)
    try probe.submit(at: address, count: count)
    try served(landing: offset, count)
  }

  /// The request that was submitted has to be served.
  func served(landing offset: UInt64 = dataOffset, _ count: UInt64 = ClientMemory.page) throws(Finding) {
    switch try probe.finish(within: context.patience) {
    case nil: throw .wedged("a request did not come back")
    case .failed(let why): throw .broken("a request failed: \(why)")
    case .done: break
    }
    // A page that still is what it was filled with was not written, unless the device holds just that.
    for page in stride(from: offset, to: offset + count, by: Int(ClientMemory.page))
    where memory.spoiled(at: page, ClientMemory.page) == nil {
      throw .broken("a request was done, and the page at \(hex(page)) of the memory was not written")
    }
  }

  /// What came of a request that cannot be served: it may fail, or nothing comes. Throws if it was reported as done.
  func unserved() throws(Finding) -> String {
    switch try probe.finish(within: context.quiet) {
    case nil: return "nothing came of the request"
    case .failed: return "the request failed"
    case .done: throw .broken("the request was reported as done")
    }
  }

  /// Takes the end of requests whose memory was taken back. Returns how many were not done; nil: the device has to be
  /// started again.
  func cutOff(_ count: Int) throws(Finding) -> Int? {
    var cut = 0
    for _ in 0..<count {
      switch try probe.finish(within: probe.failsAlone ? context.patience : context.quiet) {
      case .done: break
      case .failed: cut += 1
      case nil:
        guard !probe.failsAlone else { throw .wedged("a request whose memory was taken back did not end") }
        return nil
      }
    }
    return cut
  }

  /// The device works when it is started again: on a connection of its own, after what this check did to it.
  func recovers() throws(Finding) {
    probe.stop()
    session.connection.close()
    let next = try context.driven()
    try next.map()
    do throws(Finding) { try next.roundTrip() } catch {
      throw Finding(verdict: error.verdict, evidence: "after the device was started again: \(error.evidence)")
    }
  }
}
