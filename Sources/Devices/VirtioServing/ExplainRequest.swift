public import HostIO

/// A question to a running server, asked on the socket that its peers connect to: a message of its own number, which
/// none of them sends, as the first and only one of a connection.
public enum ExplainRequest {
  /// In what form the answer is wanted.
  public enum Form: UInt8, Sendable { case words = 0, json = 1 }

  /// Why there is no answer.
  public enum Trouble: Error, Sendable {
    case unreachable(HostError)
    /// Connected, but no answer came: another program's server.
    case silent
  }

  /// The question without its last byte, which says the form: a header of vhost-user whose request number, 0x5c1c0001,
  /// is far from every one in use; to vfio-user a command that there is not.
  package static let header: [UInt8] = [0x01, 0x00, 0x1c, 0x5c, 0x01, 0, 0, 0, 0x01, 0, 0, 0]
  /// Bytes of the whole question.
  package static let byteCount = header.count + 1
  private static let limit = 1 << 20

  package static func question(_ form: Form) -> [UInt8] { header + [form.rawValue] }

  /// The form that a connection's first bytes ask for; nil if they are no such question.
  package static func form(of bytes: [UInt8]) -> Form? {
    guard bytes.count >= byteCount, bytes.starts(with: header) else { return nil }
    return Form(rawValue: bytes[header.count])
  }

  /// Asks the server that listens at `path`. Waits five seconds at most.
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
