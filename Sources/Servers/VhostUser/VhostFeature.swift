/// The feature word's bits that are vhost's own, and no device's.
package enum VhostFeature {
  /// `VHOST_F_LOG_ALL`: device writes are to be logged.
  package static let logAllBit = 26
  /// `VHOST_USER_F_PROTOCOL_FEATURES`: protocol features may be negotiated.
  package static let protocolFeaturesBit = 30
  package static var logAll: UInt64 { 1 << logAllBit }
  package static var protocolFeatures: UInt64 { 1 << protocolFeaturesBit }
}
