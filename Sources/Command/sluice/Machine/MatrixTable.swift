import DeviceCatalog
import Machine
import Virtio

/// The truth table on one screen: a row a platform, a column a kind of decision.
struct MatrixTable {
  /// A kind of decision: how the host was set, and what the driver made of it.
  enum Column: String, CaseIterable {
    case old, off, on, auto
    case withoutBit = "on-33"
    case neither = "none"
    case legacy
    case legacyOn = "leg.on"
    case nvme

    /// Where a cell belongs.
    init(_ decision: Decision) {
      switch (decision.device.isVirtio, decision.acknowledgement, decision.host, decision.property) {
      case (false, _, _, _): self = .nvme
      case (_, .neither, _, _): self = .neither
      case (_, .notPlatform, _, .on), (_, .notPlatform, _, .auto): self = .withoutBit
      case (_, .legacy, _, .on): self = .legacyOn
      case (_, .legacy, _, _): self = .legacy
      case (_, _, .old, _): self = .old
      case (_, _, .new, .off): self = .off
      case (_, _, .new, .on): self = .on
      case (_, _, .new, .auto): self = .auto
      }
    }
  }
  /// What comes of a cell, as a letter.
  private enum Mark: Character, CaseIterable {
    case platform = "T", physical = "P", fault = "!", creation = "c", device = "d", driver = "g"

    init?(_ outcome: CellOutcome) {
      switch outcome {
      case .impossible: return nil
      case .refusedAtCreation: self = .creation
      case .refusedByDevice: self = .device
      case .refusedByDriver: self = .driver
      case .data(.platform), .oneWay(.platform, _): self = .platform
      case .data(.physical), .oneWay(.physical, _): self = .physical
      case .fault: self = .fault
      }
    }
    var colour: Int {
      switch self {
      case .platform: 32
      case .physical: 36
      case .fault: 33
      case .creation, .device, .driver: 35
      }
    }
  }
  private struct Box {
    var marks: Set<Mark> = []
    var hasFailed = false
  }
  let isColoured: Bool

  /// - Parameter results: of whole platforms.
  func text(_ results: [CellResult]) -> String {
    var lines = [
      "platform".padded(to: 16) + Column.allCases.map { $0.rawValue.padded(to: 7) }.joined()
        + " passed failed    not"
    ]
    var boxes: [String: [Column: Box]] = [:]
    var sums: [String: MatrixSum] = [:]
    for result in results {
      let platform = result.cell.decision.platform.name
      sums[platform, default: MatrixSum()].add(result)
      let column = Column(result.cell.decision)
      var box = boxes[platform]?[column] ?? Box()
      if case .failed = result.verdict { box.hasFailed = true }
      if let mark = Mark(result.cell.expected) { box.marks.insert(mark) }
      boxes[platform, default: [:]][column] = box
    }
    for platform in Platform.all {
      guard let sum = sums[platform.name] else { continue }
      var line = platform.name.padded(to: 16)
      for column in Column.allCases { line += drawn(boxes[platform.name]?[column] ?? Box()) }
      line += [sum.passed, sum.failed, sum.skipped].map { Self.right(String($0), 7) }.joined()
      lines.append(line)
    }
    return (lines + legend).joined(separator: "\n")
  }

  private func drawn(_ box: Box) -> String {
    if box.hasFailed { return painted("FAILED", 31) + " " }
    let marks = Mark.allCases.filter(box.marks.contains)
    if marks.isEmpty { return "-".padded(to: 7) }
    return marks.map { painted(String($0.rawValue), $0.colour) }.joined()
      + String(repeating: " ", count: max(7 - marks.count, 1))
  }

  private func painted(_ text: String, _ colour: Int) -> String {
    isColoured ? "\u{1B}[\(colour)m\(text)\u{1B}[0m" : text
  }

  private var legend: [String] {
    func mark(_ mark: Mark) -> String { painted(String(mark.rawValue), mark.colour) }
    return [
      "",
      "columns  old: a host older than the bit. off, on, auto: iommu_platform of a new one.",
      "         on-33: the driver leaves bit 33 out. none: VERSION_1 too.",
      "         legacy, leg.on: through the legacy interface. nvme: what is not virtio.",
      "marks    \(mark(.platform)) the bytes arrive by the platform's addresses   \(mark(.physical)) by physical ones",
      "         \(mark(.fault)) refused, and not a byte moves   - impossible",
      "         \(mark(.creation)) no such device is made   \(mark(.device)) the device refuses FEATURES_OK  \(mark(.driver)) the guest refuses the device",
      "\"not\": cells that cannot be; --json names each with its reason. --explain CELL runs one, and tells.",
    ]
  }

  private static func right(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(width - text.count, 1)) + text
  }
}

/// How many cells ended how.
struct MatrixSum {
  var passed = 0
  var failed = 0
  var skipped = 0
  var cells: Int { passed + failed + skipped }

  mutating func add(_ result: CellResult) {
    switch result.verdict {
    case .passed: passed += 1
    case .failed: failed += 1
    case .skipped: skipped += 1
    }
  }
}
