/// A fact about a device that `sluice explain` reports and this module does not know, for example the image of a disk.
public struct ReportFact: Hashable, Sendable {
  /// A value in the answer for programs.
  public enum Value: Hashable, Sendable {
    case text(String)
    case number(UInt64)
    case flag(Bool)
    /// Objects, each with fields of its own.
    case list([[String: Value]])
  }

  /// What the line for people begins with: at most 12 characters.
  public var title: String
  /// The line for people.
  public var words: String
  /// The same for programs: keys are in snake_case.
  public var values: [String: Value]

  /// A fact for people and for programs.
  public init(_ title: String, _ words: String, _ values: [String: Value]) {
    self.title = title
    self.words = words
    self.values = values
  }
}
