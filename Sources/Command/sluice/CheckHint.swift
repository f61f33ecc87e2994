import VirtioServing

/// Why one of our own servers could not be checked, as it says itself: a check waits for answers in vain where it speaks
/// another protocol, or has a peer already.
enum CheckHint {
  /// - Parameter spoken: what the check spoke.
  /// - Returns: the end of a sentence; empty if the server is not ours, or knows nothing.
  static func words(_ path: String, spoken: ServedProtocol) -> String {
    guard let answer = try? ExplainRequest.ask(path, as: .json) else { return "" }
    // Within a value the quotes would have backslashes.
    func says(_ field: String) -> Bool { answer.contains(field) }
    switch spoken {
    case .vhostUser where says(#""protocol":"vfio-user""#):
      return "; it speaks vfio-user: sluice check --vfio-user \(path)"
    case .vfioUser where says(#""protocol":"vhost-user""#):
      return "; it speaks vhost-user: sluice check \(path) --type KIND"
    case .vhostUser, .vfioUser:
      return says(#""connected":true"#) ? "; it serves somebody else, who has to disconnect first" : ""
    }
  }
}
