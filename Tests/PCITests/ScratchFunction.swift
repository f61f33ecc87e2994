import DMA
import MachineKit
import PCI
import Synchronization
import VirtioTestKit

/// A function whose BARs remember what is written: 0 is I/O, 1 holds the MSI-X table, 2 and 3 are 64-bit memory, 4 is
/// 32-bit memory.
final class ScratchFunction: PCIFunction {
  let configuration: ConfigurationSpace
  let master: BusMaster
  let msix: MSIX
  let intx: INTx
  let writes = Mutex<[Int: [UInt64: UInt64]]>([:])
  let resets = Atomic<Int>(0)
  static let wideSize: UInt64 = 1 << 16

  init(_ master: BusMaster, pin: PCIInterruptPin = .a, vectors: Int = 4, express: PCIExpressKind? = nil) {
    self.master = master
    msix = MSIX(count: vectors, master)
    intx = INTx(pin, of: master)
    var layout = ConfigurationLayout(
      PCIIdentity(
        vendorID: 0x1234, deviceID: 0x5678, revisionID: 3, classCode: 0x01_02_03, subsystemVendorID: 0xabcd,
        subsystemID: 0xef01),
      pin: pin)
    layout.add(BAR(index: 0, kind: .io, size: 32))
    layout.add(BAR(index: 1, kind: .memory32, size: 4096))
    layout.add(BAR(index: 2, kind: .memory64(prefetchable: true), size: Self.wideSize))
    layout.add(BAR(index: 4, kind: .memory32, size: 4096))
    layout.addCapability(PCICapabilityID.vendorSpecific, [6, 0xaa, 0xbb, 0xcc], writable: [0, 0, 0xf0])
    layout.addMSIX(count: vectors, table: (1, 0), pending: (1, 2048))
    if let express {
      layout.addExpress(express)
      layout.addExtendedCapability(0x0003, [1, 2, 3, 4, 5, 6, 7, 8])
      layout.addExtendedCapability(0x000b, version: 2, [0xaa, 0xbb, 0xcc], writable: [0, 0xf0])
    }
    configuration = ConfigurationSpace(layout, msix: msix, intx: intx)
  }

  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64 {
    if index == 1 {
      return offset < 2048
        ? msix.readTable(at: offset, width: width) : msix.readPending(at: offset - 2048, width: width)
    }
    return writes.withLock { $0[index]?[offset] ?? 0 }
  }

  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64) {
    if index == 1 { return msix.writeTable(at: offset, width: width, value) }
    writes.withLock { $0[index, default: [:]][offset] = value }
  }

  func reset() {
    configuration.reset()
    intx.setWanted(false)
    resets.add(1, ordering: .relaxed)
  }

  /// Whether the function reaches memory under an address now.
  func reaches(_ address: UInt64, through space: any DMASpace, for access: DMAAccess = .read) -> Bool {
    do {
      _ = try space.translate(DMAAddress(address), for: access, waking: nil)
      return true
    } catch {
      return false
    }
  }
}

extension TestMachine {
  /// A bus over a little memory.
  static func small(_ iommu: PageIOMMU? = nil) throws -> TestMachine {
    try TestMachine(memory: GuestMemory(byteCount: 1 << 20), iommu: iommu)
  }

  @discardableResult
  func plug(
    _ device: UInt8, function: UInt8 = 0, behind bridge: PCIBridge? = nil, bypassing: Bool = false,
    pin: PCIInterruptPin = .a, express: PCIExpressKind? = nil
  ) -> ScratchFunction {
    bus.add(at: PCISlot(device, function: function), behind: bridge, bypassingIOMMU: bypassing) {
      ScratchFunction($0, pin: pin, express: express)
    }
  }
}
