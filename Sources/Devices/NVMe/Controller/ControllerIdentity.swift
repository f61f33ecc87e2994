import Storage

/// Who the controller and its namespaces are: the same for the same serial number and images.
struct ControllerIdentity {
  /// The identifiers of a namespace.
  struct Namespace {
    /// IEEE identifiers that no organization has assigned: locally administered.
    var eui64: [UInt8]
    var nguid: [UInt8]
    var uuid: [UInt8]
  }
  /// SN: at most 20 characters.
  let serial: String
  /// NVMe qualified name.
  let qualifiedName: String
  let namespaces: [Namespace]

  init(_ options: NVMeOptions) {
    let all = [options.disk.serial] + options.disks.map(\.path)
    let first = Self.hash(all, 0)
    // Tools tell controllers apart by it: none is empty.
    serial = options.disk.serial.isEmpty ? "SL" + Self.hex(first) : options.disk.serial
    qualifiedName = "nqn.2014-08.org.nvmexpress:uuid:" + Self.text(Self.uuid(first, Self.hash(all, 1)))
    namespaces = options.disks.enumerated().map { i, disk in
      let words = [disk.serial, disk.path, "\(i + 1)"]
      let (high, low) = (Self.hash(words, 0), Self.hash(words, 1))
      var (eui64, nguid) = (Self.bytes(high), Self.bytes(low) + Self.bytes(high))
      // The organization's 24 bits are not assigned to any: the second lowest bit of the first says so.
      eui64[0] = eui64[0] & ~3 | 2
      nguid[8] = nguid[8] & ~3 | 2
      return Namespace(eui64: eui64, nguid: nguid, uuid: Self.uuid(high, low))
    }
  }

  /// FNV-1a, from a beginning of its own for each seed.
  private static func hash(_ words: [String], _ seed: UInt64) -> UInt64 {
    var h: UInt64 = 0xcbf2_9ce4_8422_2325 &+ seed &* 0x9e37_79b9_7f4a_7c15
    for word in words {
      for byte in word.utf8 { h = (h ^ UInt64(byte)) &* 0x100_0000_01b3 }
      h = (h ^ 0xff) &* 0x100_0000_01b3
    }
    return h
  }

  private static func bytes(_ value: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * $0)) }
  }

  /// A UUID of version 8: made in a way of our own (RFC 9562).
  private static func uuid(_ high: UInt64, _ low: UInt64) -> [UInt8] {
    var uuid = bytes(high) + bytes(low)
    uuid[6] = uuid[6] & 0x0f | 0x80
    uuid[8] = uuid[8] & 0x3f | 0x80
    return uuid
  }

  private static func hex(_ value: UInt64) -> String {
    let digits = Array("0123456789ABCDEF")
    return String((0..<16).map { digits[Int(value >> (60 - 4 * UInt64($0)) & 15)] })
  }

  private static func text(_ uuid: [UInt8]) -> String {
    let digits = Array("0123456789abcdef")
    var text = ""
    for (i, byte) in uuid.enumerated() {
      if [4, 6, 8, 10].contains(i) { text.append("-") }
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return text
  }
}
