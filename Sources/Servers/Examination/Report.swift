internal import HostIO

extension CheckResult {
  /// The result as a JSON object.
  public var json: String {
    var object = JSONObject()
    object.add("check", name)
    object.add("rule", rule)
    object.add("says", sentence)
    object.add("verdict", verdict.rawValue)
    object.add("evidence", evidence)
    object.add("milliseconds", UInt64(clamping: milliseconds))
    return object.text
  }

  /// The result as a line of a table for people.
  public var line: String {
    func pad(_ text: String, _ width: Int) -> String {
      text + String(repeating: " ", count: max(1, width - text.count))
    }
    return pad(verdict.rawValue, 13) + pad(rule, 17) + pad(name, 28) + evidence
  }
}

extension CheckSummary {
  /// The summary as a JSON object.
  ///
  /// - Parameters:
  ///   - subject: what was checked, in a word.
  ///   - offer: what it offers, as values that are JSON already.
  package func json(_ subject: String, offer: [(key: String, values: [String])]) -> String {
    var object = JSONObject()
    object.add("summary", subject)
    for one in offer { object.add(one.key, one.values) }
    for verdict in Verdict.allCases { object.add(verdict.key, UInt64(clamping: counts[verdict] ?? 0)) }
    object.add("left_out", UInt64(clamping: left))
    object.add("milliseconds", UInt64(clamping: milliseconds))
    return object.text
  }

  /// The summary as a sentence.
  public var line: String {
    var parts = Verdict.allCases.compactMap { verdict in counts[verdict].map { "\($0) \(verdict.rawValue)" } }
    if left > 0 { parts.append("\(left) left out because the server was gone") }
    return parts.joined(separator: ", ") + " in \(Double(milliseconds / 100) / 10) s"
  }
}
