/// The peer broke the protocol: which message it was, and which rule it broke.
///
/// The session answers with a failure when the message allows an answer, and otherwise ends the connection.
public struct ProtocolError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The message by its name in the interoperation document, for example `SET_VRING_ADDR`.
  public var message: String
  /// The broken rule as half a sentence, for example `the used ring is not in the memory table`.
  public var rule: String

  /// An error about `message`, which broke `rule`.
  public init(_ message: String, _ rule: String) {
    self.message = message
    self.rule = rule
  }

  public var description: String { "\(message): \(rule)" }
}
