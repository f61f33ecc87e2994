/// An option of the operator that is not possible: which one, why, and what to do instead.
public struct ConfigurationError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The option as it is written, with its value.
  public var option: String
  /// Why it cannot be.
  public var why: String
  /// What to do: an instruction.
  public var hint: String
  /// The three, without full stops.
  public init(option: String, why: String, hint: String) {
    self.option = option
    self.why = why
    self.hint = hint
  }
  /// One sentence.
  public var description: String { "\(option): \(why): \(hint)" }
}

/// A property that may be left to the device.
public enum OnOffAuto: String, Hashable, Sendable, CaseIterable {
  case off, on
  /// Decided when the device is made, from what is there then; the device says what was decided, and why.
  case auto
}
