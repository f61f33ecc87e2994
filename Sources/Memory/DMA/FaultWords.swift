extension DMAFault: CustomStringConvertible {
  /// The refusal as half a sentence: `nothing is mapped at 0x1000, which was to be read`.
  public var description: String {
    let place = "0x" + String(address.rawValue, radix: 16)
    let use = access == .read ? "which was to be read" : "which was to be written"
    return switch reason {
    case .unmapped: "nothing is mapped at \(place), \(use)"
    case .permission:
      access == .read ? "what is mapped at \(place) may not be read" : "what is mapped at \(place) may not be written"
    case .discontiguous: "the memory at \(place), \(use), begins at an odd byte"
    case .busMasterDisabled:
      "the device may not reach memory yet, and \(place) was to be \(access == .read ? "read" : "written")"
    case .stopped: "the device was stopped before \(place) could be \(access == .read ? "read" : "written")"
    case .exhausted: "there is no room for the mapping of \(place), \(use), beside the others of its request"
    }
  }
}
