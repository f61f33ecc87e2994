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
}

extension [Transport] {
  static var pci: [Transport] { [Transport(bus: .pci), Transport(bus: .pci, isPacked: true)] }
  static var mmio: [Transport] { [Transport(bus: .mmio), Transport(bus: .mmio, isPacked: true)] }
  static var modern: [Transport] { pci + mmio }
  static var legacy: [Transport] { [Transport(bus: .pciLegacy), Transport(bus: .mmioLegacy)] }
  static var all: [Transport] { modern + legacy }
  static var split: [Transport] { all.filter { !$0.isPacked } }
  static var packed: [Transport] { all.filter(\.isPacked) }
}
