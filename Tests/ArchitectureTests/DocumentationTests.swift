import Testing

@Suite("Public declarations are documented")
struct DocumentationTests {
  private struct Declaration {
    var path: String
    var line: Int
    var kind: Substring
    var name: Substring
    var isDocumented: Bool
  }

  private static let kinds: Set<Substring> = [
    "struct", "class", "enum", "protocol", "actor", "typealias", "func", "init", "var", "let", "subscript",
  ]

  /// The public declarations of a file. One-line declarations right below one another share the comment of the first.
  private func declarations(_ file: Repository.File) -> [Declaration] {
    let lines = file.lines
    let code = file.codeLines
    var found: [Declaration] = []
    var documentedUntil = -1
    for (number, line) in code.enumerated() {
      var words = line.words[...]
      guard let access = words.firstIndex(where: { $0 == "public" }) else { continue }
      words = words[access...].dropFirst()
      while let word = words.first,
        [
          "static", "final", "mutating", "consuming", "borrowing", "nonisolated", "override", "convenience", "indirect",
          "private", "fileprivate", "package", "set",
        ].contains(word)
      {
        words = words.dropFirst()
      }
      guard let kind = words.first, Self.kinds.contains(kind) else { continue }
      var above = number - 1
      while above >= 0,
        lines[above].trimmed.hasPrefix("@") || lines[above].trimmed.hasPrefix("//  ") || lines[above].trimmed == "//"
      { above -= 1 }
      let isDocumented =
        above >= 0 && (lines[above].trimmed.hasPrefix("///") || above <= documentedUntil && above == number - 1)
      let isOneLine = !line.contains("{") || line.count { $0 == "{" } == line.count { $0 == "}" }
      if isDocumented, isOneLine { documentedUntil = number }
      // Operators say it by themselves.
      if kind == "func", let name = line.split(separator: "func ", maxSplits: 1).last?.first, !name.isLetter {
        continue
      }
      found.append(
        Declaration(
          path: file.path, line: number + 1, kind: kind, name: words.dropFirst().first ?? "", isDocumented: isDocumented
        ))
    }
    return found
  }

  /// Names of requirements of public protocols: who fulfils one is documented there.
  private func requirements(_ files: [Repository.File]) -> Set<Substring> {
    var names: Set<Substring> = ["description", "hash"]
    for file in files {
      var depth: Int?
      for line in file.codeLines {
        let words = line.words
        if words.contains("protocol"), line.hasPrefix("public") || line.hasPrefix("package") { depth = 0 }
        guard let level = depth else { continue }
        if level == 1, let at = words.firstIndex(of: "func"), at + 1 < words.count { names.insert(words[at + 1]) }
        depth = level + line.count { $0 == "{" } - line.count { $0 == "}" }
        if depth == 0 { depth = nil }
      }
    }
    return names
  }

  @Test("Every public type and function says what it is")
  func documented() throws {
    let files = try Repository.swiftSources().filter { $0.folders[2] != "sluice" }
    let inherited = requirements(files)
    let all = files.flatMap(declarations)
    let types: Set<Substring> = ["struct", "class", "enum", "protocol", "actor", "typealias"]
    for d in all where !d.isDocumented {
      let mustSay = types.contains(d.kind) || d.kind == "func" && !inherited.contains(d.name)
      if mustSay { Issue.record("\(d.path):\(d.line): \(d.kind) \(d.name) has no doc comment") }
    }
    let bare = all.count { !$0.isDocumented }
    print(
      "architecture: \(all.count) public declarations, \(bare) of them without a comment (initialisers, witnesses, fields that say it in their name)"
    )
    #expect(all.count > 300)
  }
}
