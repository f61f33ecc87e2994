public import Virtio

extension DeviceProbe {
  /// A source of random numbers (§5.4).
  public static let entropy: DeviceProbe = {
    let byteCount = 512
    var probe = DeviceProbe("rng", request: Request(writable: [byteCount])) { answer in
      guard answer.written > 0, answer.written <= byteCount else {
        return "\(answer.written) bytes were written into a buffer of \(byteCount)"
      }
      // Of 32 random bytes not all are the same.
      let written = Int(answer.written) & ~31
      let holes = stride(from: 0, to: written, by: 32).filter { start in
        answer.pieces[0][start..<start + 32].allSatisfy { $0 == blank }
      }
      guard let hole = holes.first else { return nil }
      return holes.count == written / 32
        ? "nothing was written" : "nothing was written to the bytes from \(hole) on, of \(written)"
    }
    probe.answersHaveStatus = false
    probe.longRing = 1024
    probe.quickRequest = { Request(writable: [Int](repeating: 8, count: max(1, $0))) }
    return probe
  }()
}
