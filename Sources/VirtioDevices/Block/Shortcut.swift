internal import HostIO

/// Whether to try a read on the spot before handing it to the ring: worth it while the image is in the page cache.
///
/// After a miss some reads go without the attempt, twice as many after each miss in a row.
struct Shortcut {
  private var isOn: Bool
  private var skip = 0
  private var misses = 0

  init(isOn: Bool) { self.isOn = isOn }

  var isWorthTrying: Bool {
    mutating get {
      guard isOn else { return false }
      if skip == 0 { return true }
      skip -= 1
      return false
    }
  }

  mutating func learn(from result: BlockFile.ImmediateRead, wanted: Int) {
    switch result {
    case .read(wanted): misses = 0
    case .unsupported: isOn = false
    default:
      misses = min(misses + 1, 6)
      skip = (1 << misses) - 1
    }
  }
}
