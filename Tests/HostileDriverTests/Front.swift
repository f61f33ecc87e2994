/// Where a driver attacks: a transport, and a ring format.
struct Front: Hashable, Sendable, CustomStringConvertible {
  enum Bus: String, Hashable, Sendable { case pci = "PCI", pciLegacy = "PCI legacy", mmio = "MMIO", mmioLegacy = "MMIO legacy" }
  var bus: Bus
  var isPacked = false
  var isLegacy: Bool { bus == .pciLegacy || bus == .mmioLegacy }
  var isPCI: Bool { bus == .pci || bus == .pciLegacy }
  var description: String { "\(bus.rawValue) \(isPacked ? "packed" : "split")" }

  static let pci = [Front(bus: .pci), Front(bus: .pci, isPacked: true)]
  static let mmio = [Front(bus: .mmio), Front(bus: .mmio, isPacked: true)]
  static let modern = pci + mmio
  static let legacy = [Front(bus: .pciLegacy), Front(bus: .mmioLegacy)]
  static let all = modern + legacy
  static let split = all.filter { !$0.isPacked }
  static let packed = all.filter(\.isPacked)
  static let modernSplit = modern.filter { !$0.isPacked }
}
