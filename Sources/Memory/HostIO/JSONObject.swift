/// Builds one JSON object, fields in the order they are added. The back-end answers `explain` with it and must start
/// fast, so it does not load a library for this.
package struct JSONObject {
  private var fields: [String] = []

  package init() {}

  package var text: String { "{" + fields.joined(separator: ",") + "}" }

  package mutating func add(_ key: String, _ value: String) { put(key, Self.quoted(value)) }
  package mutating func add(_ key: String, _ value: String?) { put(key, value.map(Self.quoted) ?? "null") }
  package mutating func add(_ key: String, _ value: UInt64) { put(key, String(value)) }
  package mutating func add(_ key: String, _ value: Bool) { put(key, value ? "true" : "false") }
  /// A value that is JSON already.
  package mutating func add(_ key: String, json: String) { put(key, json) }
  /// Values that are JSON already.
  package mutating func add(_ key: String, _ values: [String]) { put(key, "[" + values.joined(separator: ",") + "]") }

  private mutating func put(_ key: String, _ json: String) { fields.append(Self.quoted(key) + ":" + json) }

  package static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
