internal import Virtio

/// What the driver accepted, and whose addresses the device therefore uses.
struct NegotiatedFeatures {
  let features: Features
  let addressPath: AddressPath

  init(_ features: Features) {
    self.features = features
    addressPath = AddressPath(negotiated: features)
  }
}

extension BackendSession {
  /// The bits that were accepted; none before SET_FEATURES.
  var features: Features { negotiated.features }
  /// Whose addresses the device uses.
  var addressPath: AddressPath { negotiated.addressPath }
}
