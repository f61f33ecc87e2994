/// Where the machine and the model disagree.
public struct ModelFailure: Error, CustomStringConvertible, Sendable {
  public var description: String
  public init(_ description: String) { self.description = description }
}
