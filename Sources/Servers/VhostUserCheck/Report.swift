public import Examination
public import Virtio

extension CheckSummary {
  /// The summary as a JSON object, what the back-end offers beside it.
  public func json(device: DeviceProbe, features: [Int], protocolFeatures: [String]) -> String {
    json(
      device.name,
      offer: [("features", features.map(String.init)), ("protocol_features", protocolFeatures.map { "\"\($0)\"" })])
  }
}
