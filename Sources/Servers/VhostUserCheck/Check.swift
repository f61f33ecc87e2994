internal import Examination
internal import VhostUser
internal import Virtio

/// One question to a back-end.
struct Check: CheckQuestion {
  /// Unique, and what `--only` takes.
  var name: String
  /// A rule's number (`R108`), or the message that it is about.
  var rule: String
  /// The rule in one sentence.
  var sentence: String
  /// What the back-end has to offer.
  var features: Features = []
  var protocolFeatures: ProtocolFeatures = []
  /// Only for devices that write into the driver's buffers.
  var needsWrites = false
  /// Returns what was observed if the rule was kept; otherwise throws.
  var body: @Sendable (CheckContext) throws(Finding) -> String

  init(
    _ name: String, _ rule: String, _ sentence: String, features: Features = [],
    protocolFeatures: ProtocolFeatures = [],
    needsWrites: Bool = false, _ body: @escaping @Sendable (CheckContext) throws(Finding) -> String
  ) {
    self.name = name
    self.rule = rule
    self.sentence = sentence
    self.features = features
    self.protocolFeatures = protocolFeatures
    self.needsWrites = needsWrites
    self.body = body
  }

  func examine(_ context: CheckContext) -> Finding {
    if let missing = missing(context) { return .notOffered(missing) }
    do throws(Finding) { return Finding(verdict: .kept, evidence: try body(context)) } catch { return error }
  }

  /// What the back-end does not offer and would have to, or nil.
  func missing(_ context: CheckContext) -> String? {
    let absent = features.subtracting(context.offeredFeatures).bits
    if let bit = absent.first { return "\(Self.name(of: bit)) is not offered" }
    let names = protocolFeatures.subtracting(context.offeredProtocol).names
    if let name = names.first { return "the protocol feature \(name) is not offered" }
    return needsWrites && !context.device.writes
      ? "a \(context.device) device does not write into its driver's buffers here" : nil
  }

  private static func name(of bit: Int) -> String {
    switch bit {
    case VhostFeature.logAllBit: "VHOST_F_LOG_ALL"
    case 28: "VIRTIO_F_INDIRECT_DESC"
    case 29: "VIRTIO_F_EVENT_IDX"
    case VhostFeature.protocolFeaturesBit: "VHOST_USER_F_PROTOCOL_FEATURES"
    case 32: "VIRTIO_F_VERSION_1"
    case 33: "VIRTIO_F_ACCESS_PLATFORM"
    case 34: "VIRTIO_F_RING_PACKED"
    case 35: "VIRTIO_F_IN_ORDER"
    case 40: "VIRTIO_F_RING_RESET"
    default: "feature bit \(bit)"
    }
  }

  /// All checks, in the order in which they are made: what kills a back-end comes last.
  static let all: [Check] =
    negotiation + rings + stopping + lifetime + lives + restless + memory + translation + addressing + permissions
    + granting + invalidation + log
    + inflight + messages + memoryTables + brokenRings + garbage
}
