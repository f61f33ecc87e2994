/// Whether a back-end looks like the kind of device it is checked as. The protocol has no request for that; the offered
/// features show it.
extension CheckedDevice {
  /// Feature bits that devices of this kind have, of those below 24, which belong to the kind (§2.2); of a network
  /// device those that were dropped in virtio 1.0, too.
  private var known: Set<Int> {
    switch self {
    case .blk: Set(0...17).subtracting([3, 8])
    case .rng: []
    case .net: Set(0...23).subtracting([4])
    case .fs: [0]
    case .vsock: [0, 1, 2]
    }
  }

  /// Of these every device of the kind is known to offer one; empty where there are devices that offer none.
  private var usual: Set<Int> {
    switch self {
    // SEG_MAX, GEOMETRY, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ.
    case .blk: [2, 4, 6, 9, 10, 11, 12]
    // CSUM, GUEST_CSUM, MAC, MRG_RXBUF, STATUS, CTRL_VQ, MQ.
    case .net: [0, 1, 5, 15, 16, 17, 22]
    case .rng, .fs, .vsock: []
    }
  }

  /// Whether a device that offers these bits can be of this kind.
  private func canOffer(_ bits: Set<Int>) -> Bool {
    bits.isSubset(of: known) && (usual.isEmpty || !bits.isDisjoint(with: usual))
  }

  /// Why a back-end that offers these features and that many queues does not look like a device of this kind, in a
  /// sentence; nil if it does.
  func doubt(features: [Int], queueCount: Int) -> String? {
    let bits = Set(features.filter { $0 < 24 })
    var reasons: [String] = []
    let strange = bits.subtracting(known).sorted()
    if !strange.isEmpty {
      reasons.append(
        "it offers feature \(strange.count == 1 ? "bit" : "bits") \(strange.map(String.init).joined(separator: ", ")), "
          + "which one has no meaning for"
      )
    } else if !usual.isEmpty, bits.isDisjoint(with: usual) {
      reasons.append("it offers none of the feature bits that one has")
    }
    if queueLimit(queueCount) < self.queueCount {
      reasons.append("it has \(queueCount == 1 ? "1 queue" : "\(queueCount) queues"), and one has \(self.queueCount)")
    }
    guard !reasons.isEmpty else { return nil }
    // A kind that says something, before those that nearly any device could be.
    let other = [Self.blk, .net].first { $0 != self && $0.canOffer(bits) }
    let guess = other.map { "; it looks like --type \($0.rawValue)" } ?? ""
    return
      "the back-end does not look like a device of --type \(rawValue): \(reasons.joined(separator: ", and "))\(guess). "
      + "With the wrong type most rules seem broken"
  }
}
