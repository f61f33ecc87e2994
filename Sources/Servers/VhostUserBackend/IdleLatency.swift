internal import HostIO
internal import VirtioServing

/// How long an idle processor may take to wake while translations come one after the other.
///
/// A front-end waits for our answer to each of its messages, so for every page that a guest maps and unmaps two threads
/// wake each other several times. Where a processor that has nothing to do is stopped in between, waking it takes
/// longer than all the rest.
public enum IdleLatencyPolicy: Hashable, Sendable {
  /// No time at all inside a virtual machine whose idle processors its hypervisor stops; elsewhere as the machine has
  /// it.
  case auto
  /// As the machine has it.
  case off
  /// So many microseconds at most.
  case limit(Int32)

  /// The limit, or nil for none.
  var microseconds: Int32? {
    switch self {
    case .auto: IdleLatencyLimit.isIdleOutside ? 0 : nil
    case .off: nil
    case .limit(let most): most
    }
  }
}

/// Keeps the limit of ``IdleLatencyPolicy`` in force while translations come fast, and gives it up soon after. One
/// thread uses it.
struct IdleLatency {
  /// Messages that decide.
  private static let messages = 64
  /// They came fast if they took no longer.
  private static let window = Duration.milliseconds(20)

  /// Its effect, for reports.
  enum Outcome: Hashable, Sendable {
    case unused
    /// It was in force so many times.
    case used(Int)
    /// It may not be asked for.
    case refused(HostError)
  }

  private let microseconds: Int32?
  private let ask: (Int32) throws(HostError) -> AnyObject
  private var limit: AnyObject?
  private var left = IdleLatency.messages
  private var began = ContinuousClock.now
  private(set) var outcome = Outcome.unused

  init(
    _ policy: IdleLatencyPolicy,
    ask: @escaping (Int32) throws(HostError) -> AnyObject = { most throws(HostError) in
      try IdleLatencyLimit(microseconds: most)
    }
  ) {
    microseconds = policy.microseconds
    self.ask = ask
  }

  /// Whether the limit is in force.
  var isInForce: Bool { limit != nil }
  /// How long the control thread may wait for messages before ``look(at:)``; nil: for ever.
  var patience: Duration? { limit == nil ? nil : Self.window }

  /// A message about a translation came.
  mutating func message(at now: @autoclosure () -> ContinuousClock.Instant = .now) {
    guard microseconds != nil else { return }
    left -= 1
    guard left == 0 else { return }
    left = Self.messages
    let end = now()
    if began.duration(to: end) <= Self.window { begin() } else { limit = nil }
    began = end
  }

  /// Gives the limit up if too few came since the last decision. Returns true if it did. Call it after every wait.
  mutating func look(at now: @autoclosure () -> ContinuousClock.Instant = .now) -> Bool {
    guard limit != nil, began.duration(to: now()) > Self.window * 2 else { return false }
    quiet()
    return true
  }

  /// None will come.
  mutating func quiet() {
    limit = nil
    left = Self.messages
  }

  private mutating func begin() {
    guard limit == nil, let microseconds else { return }
    if case .refused = outcome { return }
    do throws(HostError) {
      limit = try ask(microseconds)
      if case .used(let count) = outcome { outcome = .used(count + 1) } else { outcome = .used(1) }
    } catch {
      outcome = .refused(error)
    }
  }
}

extension IdleLatency {
  /// What `ServingReport/facts` says of it.
  var fact: ReportFact {
    var values: [String: ReportFact.Value] = ["idle_latency_limited": .flag(isInForce)]
    if let microseconds { values["idle_latency_us"] = .number(UInt64(microseconds)) }
    if case .refused(let error) = outcome { values["idle_latency_refused"] = .text("\(error)") }
    return ReportFact("idle wake-up", words, values)
  }

  private var words: String {
    guard let microseconds else { return "idle processors take as long as they do to wake" }
    let limit = "idle processors wake within \(microseconds) us while translations come fast"
    switch outcome {
    case .unused: return limit
    case .used(let count): return "\(limit); \(counted(count, "time")) so far"
    case .refused(let error):
      return
        """
        idle processors take as long as they do to wake, since /dev/cpu_dma_latency may not be written \
        (\(error.errno)): translations are slower
        """
    }
  }
}
