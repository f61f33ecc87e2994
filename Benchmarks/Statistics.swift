import Foundation

/// The middle value; of an even number of values the mean of the two in the middle. 0 of none.
func median(_ values: [Double]) -> Double {
  guard !values.isEmpty else { return 0 }
  let sorted = values.sorted()
  let middle = sorted.count / 2
  return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/// The value below which `share` of the values are, 0...1.
func percentile(_ sorted: [UInt32], _ share: Double) -> Double {
  guard !sorted.isEmpty else { return 0 }
  return Double(sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))])
}

/// The monotonic clock in nanoseconds.
@inline(__always) func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

extension Double {
  func text(_ digits: Int = 1) -> String { String(format: "%.\(digits)f", self) }
}

/// Rows as a table whose columns are as wide as they need to be.
struct Table {
  private var rows: [[String]] = []
  private let isJSON: Bool

  init(_ titles: [String], json: Bool) {
    isJSON = json
    if !json { rows = [titles] }
  }

  /// Adds a row, or prints it at once where a line is a row of JSON.
  mutating func add(_ cells: [String], json: [(String, JSONValue)]) {
    if isJSON {
      // At once: a run may be cut short.
      let line = "{" + json.map { "\"\($0.0)\":\($0.1.text)" }.joined(separator: ",") + "}\n"
      FileHandle.standardOutput.write(Data(line.utf8))
    } else {
      rows.append(cells)
    }
  }

  func finish() {
    guard let first = rows.first else { return }
    let widths = first.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    for row in rows {
      print(
        zip(row, widths).map { String(repeating: " ", count: $1 - $0.count) + $0 }.joined(separator: "  "))
    }
  }
}

/// A number or a word of a JSON line.
enum JSONValue {
  case number(Double)
  case integer(Int)
  case word(String)
  case none

  var text: String {
    switch self {
    case .number(let value): String(format: "%.6g", value)
    case .integer(let value): "\(value)"
    case .word(let value): "\"\(value)\""
    case .none: "null"
    }
  }
}
