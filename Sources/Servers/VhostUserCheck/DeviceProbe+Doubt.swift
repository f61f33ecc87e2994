internal import Virtio

/// Whether a back-end looks like the kind of device it is checked as. The protocol has no request for that; the offered
/// features show it.
extension DeviceProbe {
  /// Whether a device that offers these bits can be of this kind.
  private func canOffer(_ bits: Set<Int>) -> Bool {
    bits.isSubset(of: features) && (usualFeatures.isEmpty || !bits.isDisjoint(with: usualFeatures))
  }

  /// Why a back-end that offers these features and that many queues does not look like a device of this kind, in a
  /// sentence; nil if it does.
  ///
  /// - Parameter others: kinds that it may be instead.
  func doubt(features offered: [Int], queueCount: Int, others: [DeviceProbe]) -> String? {
    let bits = Set(offered.filter { $0 < 24 })
    var reasons: [String] = []
    let strange = bits.subtracting(features).sorted()
    if !strange.isEmpty {
      reasons.append(
        "it offers feature \(strange.count == 1 ? "bit" : "bits") \(strange.map(String.init).joined(separator: ", ")), "
          + "which one has no meaning for"
      )
    } else if !usualFeatures.isEmpty, bits.isDisjoint(with: usualFeatures) {
      reasons.append("it offers none of the feature bits that one has")
    }
    if queueLimit(queueCount) < self.queueCount {
      reasons.append("it has \(queueCount == 1 ? "1 queue" : "\(queueCount) queues"), and one has \(self.queueCount)")
    }
    guard !reasons.isEmpty else { return nil }
    // A kind that says something of itself; nearly any device could be one of the rest.
    let other = others.first { $0.name != name && !$0.usualFeatures.isEmpty && $0.canOffer(bits) }
    let guess = other.map { "; it looks like --type \($0.name)" } ?? ""
    return
      "the back-end does not look like a device of --type \(name): \(reasons.joined(separator: ", and "))\(guess). "
      + "With the wrong type most rules seem broken"
  }
}
