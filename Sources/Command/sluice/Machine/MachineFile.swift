import DeviceCatalog
import FoundationEssentials
import Machine
import Virtio

/// A machine's description as a file has it: JSON, every key known, every mistake with what to write instead.
struct MachineFile {
  /// Any JSON, with its keys: so that those that are not known can be named.
  private enum Value: Decodable {
    case object([String: Value])
    case list([Value])
    case text(String)
    case number(Double)
    case flag(Bool)
    case null

    init(from decoder: any Decoder) throws {
      let one = try decoder.singleValueContainer()
      if one.decodeNil() {
        self = .null
      } else if let value = try? one.decode(Bool.self) {
        self = .flag(value)
      } else if let value = try? one.decode(Double.self) {
        self = .number(value)
      } else if let value = try? one.decode(String.self) {
        self = .text(value)
      } else if let value = try? one.decode([Value].self) {
        self = .list(value)
      } else {
        self = .object(try one.decode([String: Value].self))
      }
    }
  }

  /// A description is small: what is longer is none.
  private static let mostBytes: UInt64 = 1 << 20

  /// A file's bytes. Pipes and devices, which may have no end, are refused.
  private static func read(_ path: String) throws -> Data {
    guard let attributes = try? FileManager.default.attributesOfItem(atPath: path) else {
      throw Failure.usage("there is no file \(path)")
    }
    guard attributes[.type] as? FileAttributeType == .typeRegular else {
      throw Failure.usage("\(path) is not a regular file")
    }
    guard let size = attributes[.size] as? any BinaryInteger, UInt64(clamping: size) <= mostBytes else {
      throw Failure.usage("\(path) is too large for a description (1 MiB)")
    }
    guard let data = FileManager.default.contents(atPath: path) else {
      throw Failure.usage("this user may not read \(path)")
    }
    return data
  }

  /// The description in a file.
  static func description(at path: String) throws -> MachineDescription {
    let data = try read(path)
    let value: Value
    do {
      value = try JSONDecoder().decode(Value.self, from: data)
    } catch {
      throw Failure.usage(
        "\(path) is not valid JSON: a machine is an object like {\"platform\":\"pc-vtd\",\"devices\":[{\"kind\":\"blk\"}]}"
      )
    }
    var top = try Fields(value, "the file", path)
    let name = try top.text("platform") ?? "pc"
    let platform = try MachineCommand.platform(name)
    var devices: [DeviceDescription] = []
    let list = try top.list("devices")
    let work = top.value("workload")
    try top.refuseOthers()
    for (i, device) in list.enumerated() {
      devices.append(try Self.device(Fields(device, "device \(i)", path), i, platform))
    }
    guard !devices.isEmpty else {
      throw Failure.usage("\(path): a machine needs a device: \"devices\":[{\"kind\":\"blk\"}]")
    }
    guard devices.count <= 30 else {
      throw Failure.usage("\(path): a machine has at most 30 devices, not \(devices.count)")
    }
    var workload = Workload()
    if let work { workload = try Self.workload(Fields(work, "workload", path)) }
    return MachineDescription(platform: platform, devices: devices, workload: workload)
  }

  private static func device(_ fields: Fields, _ index: Int, _ platform: Platform) throws -> DeviceDescription {
    var fields = fields
    let kind = try fields.word("kind", among: DeviceKind.inMachines) ?? .block
    var device = DeviceDescription(name: try fields.text("name") ?? "\(kind.rawValue)\(index)", kind: kind)
    if let value = try fields.word("interface", Interface.self) { device.interface = value }
    if let value = try fields.word("iommu_platform", OnOffAuto.self) { device.property = value }
    if let value = try fields.word("host", HostAge.self) { device.host = value }
    device.acknowledgement = device.interface == .legacy || device.interface == .mmioLegacy ? .legacy : .all
    if let value = try fields.word("accepts", Acknowledgement.self) { device.acknowledgement = value }
    device.state = platform.describesIOMMU ? .attached : .none
    if let value = try fields.word("iommu", UnitState.self) { device.state = value }
    if let value = try fields.word("ring", RingKind.self) { device.ring = value }
    if let value = try fields.word("descriptors", DescriptorKind.self) { device.descriptors = value }
    if let value = try fields.text("image") { device.image = value }
    if let value = try fields.number("size", 1_048_576...1_073_741_824) { device.byteCount = Int(value) & ~511 }
    if let value = try fields.number("flush_batch", 1...4096) { device.flushBatch = Int(value) }
    try fields.refuseOthers()
    let decision = Decision(
      platform: platform, host: device.host, property: device.property, acknowledgement: device.acknowledgement,
      interface: device.interface, state: device.state, device: kind)
    if let why = decision.impossibility { throw Failure.usage("\(fields.place): this device is impossible: \(why)") }
    return device
  }

  private static func workload(_ fields: Fields) throws -> Workload {
    var fields = fields
    var workload = Workload()
    if let value = try fields.word("kind", Workload.Kind.self) { workload.kind = value }
    if let value = try fields.number("requests", 1...1e12) { workload.requests = Int(value) }
    if let value = try fields.number("seconds", 0.01...1e6) { workload.seconds = value }
    if let value = try fields.number("block_size", 512...262144) {
      guard Int(value) % 512 == 0 else { throw Failure.usage("\(fields.place): block_size must be a multiple of 512") }
      workload.blockSize = Int(value)
    }
    if let value = try fields.number("seed", 0...9e15) { workload.seed = UInt64(value) }
    try fields.refuseOthers()
    return workload
  }

  /// The fields of an object, of which each is asked for once.
  private struct Fields {
    let place: String
    private var values: [String: Value]
    private var known: [String] = []

    init(_ value: Value, _ what: String, _ path: String) throws {
      place = "\(path): \(what)"
      guard case .object(let values) = value else { throw Failure.usage("\(place) must be an object, in braces") }
      self.values = values
    }

    mutating func value(_ key: String) -> Value? {
      known.append(key)
      return values.removeValue(forKey: key)
    }
    mutating func text(_ key: String) throws -> String? {
      switch value(key) {
      case nil: return nil
      case .text(let text)?: return text
      default: throw Failure.usage("\(place): \(key) must be a string, in quotes")
      }
    }
    mutating func word<W: RawRepresentable & CaseIterable>(_ key: String, _ type: W.Type) throws -> W?
    where W.RawValue == String {
      try word(key, among: Array(W.allCases))
    }
    mutating func word<W: RawRepresentable>(_ key: String, among words: [W]) throws -> W? where W.RawValue == String {
      guard let text = try text(key) else { return nil }
      if let word = words.first(where: { $0.rawValue == text }) { return word }
      throw Failure.usage("\(place): \(key) is \(words.map(\.rawValue).joined(separator: ", ")), not \(text)")
    }
    mutating func number(_ key: String, _ range: ClosedRange<Double>) throws -> Double? {
      switch value(key) {
      case nil: return nil
      case .number(let number)? where range.contains(number): return number
      default:
        throw Failure.usage(
          "\(place): \(key) is a number from \(Self.plain(range.lowerBound)) to \(Self.plain(range.upperBound))")
      }
    }
    private static func plain(_ number: Double) -> String {
      number == number.rounded() ? String(Int64(number)) : String(number)
    }
    mutating func list(_ key: String) throws -> [Value] {
      switch value(key) {
      case nil: return []
      case .list(let list)?: return list
      default: throw Failure.usage("\(place): \(key) must be an array, in brackets")
      }
    }
    /// A key that was not read is a mistake; the known one that looks most like it may have been meant.
    func refuseOthers() throws {
      guard let other = values.keys.sorted().first else { return }
      let nearest = known.min { Self.distance($0, other) < Self.distance($1, other) } ?? ""
      throw Failure.usage(
        "\(place): there is no key \(other); did you mean \(nearest)? (there are \(known.sorted().joined(separator: ", ")))"
      )
    }
    /// Letters to be changed, added or left out between two words.
    private static func distance(_ a: String, _ b: String) -> Int {
      let a = Array(a), b = Array(b)
      var row = Array(0...b.count)
      for i in a.indices {
        var last = row[0]
        row[0] = i + 1
        for j in b.indices {
          let old = row[j + 1]
          row[j + 1] = min(min(row[j + 1], row[j]) + 1, last + (a[i] == b[j] ? 0 : 1))
          last = old
        }
      }
      return row[b.count]
    }
  }
}
