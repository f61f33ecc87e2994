/// A text of JSON, as far as VERSION needs it: nothing below the command has a library for that.
indirect enum JSONValue: Equatable {
  case object([String: JSONValue])
  case list([JSONValue])
  case text(String)
  case number(Double)
  case truth(Bool)
  case null

  /// Nil: it is no JSON.
  init?(_ text: String) {
    var reader = Reader(bytes: Array(text.utf8))
    guard let value = reader.value(0) else { return nil }
    reader.skip()
    guard reader.at == reader.bytes.count else { return nil }
    self = value
  }

  private struct Reader {
    let bytes: [UInt8]
    var at = 0
    /// A text that nests deeper is not looked at.
    private static let depth = 32

    init(bytes: [UInt8]) { self.bytes = bytes }

    var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    mutating func skip() { while let byte = next, [0x20, 0x09, 0x0a, 0x0d].contains(byte) { at += 1 } }

    mutating func take(_ word: String) -> Bool {
      let wanted = Array(word.utf8)
      guard bytes.count - at >= wanted.count, Array(bytes[at..<at + wanted.count]) == wanted else { return false }
      at += wanted.count
      return true
    }

    mutating func value(_ level: Int) -> JSONValue? {
      guard level < Self.depth else { return nil }
      skip()
      switch next {
      case UInt8(ascii: "{"): return object(level)
      case UInt8(ascii: "["): return list(level)
      case UInt8(ascii: "\""): return string().map { .text($0) }
      case UInt8(ascii: "t"): return take("true") ? .truth(true) : nil
      case UInt8(ascii: "f"): return take("false") ? .truth(false) : nil
      case UInt8(ascii: "n"): return take("null") ? .null : nil
      default: return number()
      }
    }

    private mutating func object(_ level: Int) -> JSONValue? {
      var fields: [String: JSONValue] = [:]
      at += 1
      skip()
      if take("}") { return .object([:]) }
      while true {
        skip()
        guard next == UInt8(ascii: "\""), let key = string() else { return nil }
        skip()
        guard take(":"), let value = value(level + 1) else { return nil }
        fields[key] = value
        skip()
        if take("}") { return .object(fields) }
        guard take(",") else { return nil }
      }
    }

    private mutating func list(_ level: Int) -> JSONValue? {
      var values: [JSONValue] = []
      at += 1
      skip()
      if take("]") { return .list([]) }
      while true {
        guard let value = value(level + 1) else { return nil }
        values.append(value)
        skip()
        if take("]") { return .list(values) }
        guard take(",") else { return nil }
      }
    }

    private mutating func string() -> String? {
      at += 1
      var text: [UInt8] = []
      while let byte = next {
        at += 1
        switch byte {
        case UInt8(ascii: "\""): return String(decoding: text, as: UTF8.self)
        case UInt8(ascii: "\\"):
          // No key here has one: what it stands for does not matter.
          guard next != nil else { return nil }
          at += 1
          text.append(0x3f)
        case 0..<0x20: return nil
        default: text.append(byte)
        }
      }
      return nil
    }

    private mutating func number() -> JSONValue? {
      let start = at
      while let byte = next, (0x30...0x39).contains(byte) || [0x2b, 0x2d, 0x2e, 0x45, 0x65].contains(byte) { at += 1 }
      return Double(String(decoding: bytes[start..<at], as: UTF8.self)).map { .number($0) }
    }
  }
}
