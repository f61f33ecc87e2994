import Foundation

/// The package's own files, as the tests read them.
enum Repository {
  /// The folder of Package.swift: three levels above this file.
  static let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  struct File {
    /// Relative to the root.
    var path: String
    var text: String
    /// The text without comments and the contents of string literals, line for line.
    var code: String
    var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }
    var codeLines: [Substring] { code.split(separator: "\n", omittingEmptySubsequences: false) }
    var folders: [String] { path.split(separator: "/").map(String.init) }
  }

  /// Files below `folders` whose names end in one of `endings`, in order.
  static func files(below folders: [String], _ endings: [String]) throws -> [File] {
    var found: [File] = []
    for folder in folders {
      let base = root.appendingPathComponent(folder)
      guard let walk = FileManager.default.enumerator(at: base, includingPropertiesForKeys: [.isRegularFileKey]) else {
        continue
      }
      for case let url as URL in walk {
        if url.lastPathComponent.hasPrefix(".") {
          walk.skipDescendants()
          continue
        }
        guard endings.contains(where: { url.lastPathComponent.hasSuffix($0) }) else { continue }
        guard try url.resourceValues(forKeys: [.isRegularFileKey]).isRegularFile == true else { continue }
        // Seeds of the fuzzers are bytes, not text.
        guard let text = String(data: try Data(contentsOf: url), encoding: .utf8) else { continue }
        let path = String(url.resolvingSymlinksInPath().path.dropFirst(root.path.count + 1))
        found.append(File(path: path, text: text, code: stripped(text)))
      }
    }
    return found.sorted { $0.path < $1.path }
  }

  static func swiftSources() throws -> [File] { try files(below: ["Sources"], [".swift"]) }
  static func allSwift() throws -> [File] {
    try files(below: ["Sources", "Tests", "Benchmarks", "Examples", "Fuzz"], [".swift"])
  }

  /// Blanks comments and string contents; keeps line breaks, so that line numbers agree.
  static func stripped(_ text: String) -> String {
    enum Place { case code, line, block(Int), string, longString }
    let c = Array(text.unicodeScalars)
    var out = String.UnicodeScalarView()
    var place = Place.code
    var i = 0
    func at(_ k: Int) -> UnicodeScalar { k < c.count ? c[k] : " " }
    func quotes(_ k: Int) -> Bool { at(k) == "\"" && at(k + 1) == "\"" && at(k + 2) == "\"" }
    while i < c.count {
      let x = c[i]
      switch place {
      case .code:
        if x == "/", at(i + 1) == "/" {
          place = .line
        } else if x == "/", at(i + 1) == "*" {
          place = .block(1)
          i += 1
        } else if quotes(i) {
          place = .longString
          i += 2
        } else if x == "\"" {
          place = .string
          out.append("\"")
        } else {
          out.append(x)
        }
      case .line:
        if x == "\n" {
          place = .code
          out.append(x)
        }
      case .block(let depth):
        if x == "\n" { out.append(x) }
        if x == "*", at(i + 1) == "/" {
          place = depth == 1 ? .code : .block(depth - 1)
          i += 1
        } else if x == "/", at(i + 1) == "*" {
          place = .block(depth + 1)
          i += 1
        }
      case .string:
        if x == "\\" {
          i += 1
        } else if x == "\"" || x == "\n" {
          place = .code
          out.append(x)
        }
      case .longString:
        if x == "\n" { out.append(x) }
        if quotes(i) {
          place = .code
          i += 2
        }
      }
      i += 1
    }
    return String(out)
  }
}

extension Substring {
  /// The words of a line of code: runs of letters, digits and underscores.
  var words: [Substring] { split { !($0.isLetter || $0.isNumber || $0 == "_") } }
  var trimmed: String { trimmingCharacters(in: .whitespaces) }
}
