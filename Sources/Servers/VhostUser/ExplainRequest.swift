public import HostIO

/// A question to a running back-end, asked on the socket that front-ends connect to: a message of its own number, which
/// no front-end sends, as the first and only one of a connection.
public enum ExplainRequest {
  /// In what form the answer is wanted.
  public enum Form: UInt8, Sendable { case words = 0, json = 1 }

  /// Why there is no answer.
  public enum Trouble: Error, Sendable {
    case unreachable(HostError)
    /// Connected, but no answer came: another program's back-end.
    case silent
  }

  /// Far from every number in use on this socket.
  package static let number: UInt32 = 0x5c1c_0001
  /// Bytes of the whole question.
  package static let byteCount = MessageHeader.byteCount + 1
  private static let limit = 1 << 20

  package static func question(_ form: Form) -> [UInt8] {
    MessageHeader.frame(request: number, flags: 0, payload: [form.rawValue])
  }

  /// The form that a connection's first bytes ask for; nil if they are no such question.
  package static func form(of bytes: [UInt8]) -> Form? {
    guard bytes.count >= byteCount,
      Array(bytes.prefix(MessageHeader.byteCount)) == Array(question(.words).prefix(MessageHeader.byteCount))
    else { return nil }
    return Form(rawValue: bytes[MessageHeader.byteCount])
  }

  /// Asks the back-end that listens at `path`. Waits five seconds at most.
  public static func ask(_ path: String, as form: Form) throws(Trouble) -> String {
    var text: [UInt8] = []
    do throws(HostError) {
      let socket = try UnixSocket.connect(to: path)
      try socket.send(question(form).span, timeout: .seconds(5))
      var buffer = [UInt8](repeating: 0, count: 4096)
      var none = FileDescriptorList()
      reading: while text.count < limit {
        guard try socket.waitReadable(timeout: .seconds(5)) else { break }
        var span = buffer.mutableSpan
        switch try socket.receive(into: &span, descriptors: &none) {
        case .bytes(let n): text += buffer[..<n]
        case .nothingYet: continue
        case .closed: break reading
        }
      }
    } catch {
      throw error.call == "recvmsg" ? .silent : .unreachable(error)
    }
    // The answer is the text itself; the first byte tells it from another program's answer.
    guard let first = text.first, first == UInt8(ascii: "{") || first == UInt8(ascii: "#") else { throw .silent }
    return String(decoding: first == UInt8(ascii: "#") ? Array(text.dropFirst()) : text, as: UTF8.self)
  }
}
