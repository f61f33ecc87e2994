import Virtio

/// What a device says of itself, and its configuration space from every side.
extension DeviceConformance {
  /// What it offers, its queues and their groups.
  public func violationsOfIdentity() throws -> [String] {
    var violations: [String] = []
    let device = try make()
    func expect(_ condition: Bool, _ violation: String) { if !condition { violations.append(violation) } }
    expect(device.features.isSuperset(of: .ring), "the ring's features are not offered")
    expect(!device.features.contains(.accessPlatform), "bit 33 is offered by the device; transports add it")
    // Bits 0 to 23 and 50 to 127 are the device's; the others are the transport's and the ring's (§2.2).
    let foreign = device.features.subtracting(.ring).bits.filter { (24..<50).contains($0) }
    expect(foreign.isEmpty, "reserved bits \(foreign) are offered")
    expect(!device.maxQueueSizes.isEmpty, "it has no queue")
    expect(device.maxQueueSizes.allSatisfy { (1...32768).contains($0) }, "queue sizes \(device.maxQueueSizes)")
    expect(
      device.queueGroups.flatMap { Array($0) } == Array(device.maxQueueSizes.indices),
      "groups \(device.queueGroups) of \(device.maxQueueSizes.count) queues")
    // A driver may take next to nothing.
    for group in device.queueGroups { _ = try device.makeHandler(for: group, features: .version1) }
    return violations
  }

  /// Every offset and length, also past the end; then writes to all of them.
  public func violationsOfConfiguration() throws -> [String] {
    var violations: [String] = []
    let device = try make()
    let size = device.configurationSize
    func read(_ offset: Int, _ count: Int) -> [UInt8] {
      var bytes = [UInt8](repeating: 0xa5, count: count)
      var span = bytes.mutableSpan
      device.readConfiguration(at: offset, into: &span)
      return bytes
    }
    func check(_ all: [UInt8], _ when: String) {
      let padded = all + [UInt8](repeating: 0, count: 40)
      for offset in 0...size + 20 {
        for count in 0...size + 20 where violations.count < 10 {
          let end = min(padded.count, offset + count)
          let expected =
            Array(padded[min(offset, end)..<end]) + [UInt8](repeating: 0, count: offset + count - max(end, offset))
          let got = read(offset, count)
          if got != expected {
            violations.append("\(count) bytes at \(offset) \(when) read as \(got), not \(expected)")
          }
        }
      }
      for offset in [size, 4096, 1 << 31, Int.max - 4, Int.max] where read(offset, 4) != [0, 0, 0, 0] {
        violations.append("bytes at \(offset) \(when) are not zero")
      }
    }
    let all = read(0, size)
    check(all, "at first")
    var random = SeededGenerator(5)
    for offset in Array(0...size + 20) + [4096, 1 << 31, Int.max - 4, Int.max] {
      for count in [0, 1, 2, 4, 8, size + 20] {
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
        device.writeConfiguration(at: offset, from: bytes.span)
        let now = read(0, size)
        for i in 0..<size where now[i] != all[i] && !writableConfiguration.contains(i) && violations.count < 10 {
          violations.append("\(count) bytes written at \(offset) changed byte \(i), which a driver may not write")
        }
      }
    }
    check(read(0, size), "after writes")
    return violations
  }
}
