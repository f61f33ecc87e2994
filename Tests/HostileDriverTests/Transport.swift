/// Where a driver attacks: a transport, and a ring format.
struct Transport: Hashable, Sendable, CustomStringConvertible {
  enum Bus: String, Hashable, Sendable {
    case pci = "PCI", pciLegacy = "PCI legacy", mmio = "MMIO", mmioLegacy = "MMIO legacy"
  }
  var bus: Bus
  var isPacked = false
  var isLegacy: Bool { bus == .pciLegacy || bus == .mmioLegacy }
  var isPCI: Bool { bus == .pci || bus == .pciLegacy }
  var description: String { "\(bus.rawValue) \(isPacked ? "packed" : "split")" }

  static let pci = [Transport(bus: .pci), Transport(bus: .pci, isPacked: true)]
  static let mmio = [Transport(bus: .mmio), Transport(bus: .mmio, isPacked: true)]
  static let modern = pci + mmio
  static let legacy = [Transport(bus: .pciLegacy), Transport(bus: .mmioLegacy)]
  static let all = modern + legacy
  static let split = all.filter { !$0.isPacked }
  static let packed = all.filter(\.isPacked)
  static let modernSplit = modern.filter { !$0.isPacked }
}
