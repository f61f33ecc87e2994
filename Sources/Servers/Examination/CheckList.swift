internal import HostIO

/// A check by its name, with its rule and the rule's sentence.
public typealias CheckEntry = (name: String, rule: String, sentence: String)

extension Array where Element: CheckQuestion {
  /// Those of these names, or all for no name.
  package func named(_ only: [String]) throws(CheckError) -> [Element] {
    if let unknown = only.first(where: { name in !contains { $0.name == name } }) { throw .noSuchCheck(unknown) }
    return only.isEmpty ? self : filter { only.contains($0.name) }
  }

  /// What a list of checks shows.
  package var entries: [CheckEntry] { map { ($0.name, $0.rule, $0.sentence) } }

  /// The same as objects of JSON, one each.
  package var json: [String] {
    map { question in
      var object = JSONObject()
      object.add("check", question.name)
      object.add("rule", question.rule)
      object.add("says", question.sentence)
      return object.text
    }
  }
}

/// What is said before the first result.
public enum CheckWarning {
  /// A warning as an object of JSON.
  public static func json(_ warning: String) -> String {
    var object = JSONObject()
    object.add("warning", warning)
    return object.text
  }
}
