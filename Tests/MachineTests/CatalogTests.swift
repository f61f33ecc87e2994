import DeviceCatalog
import Storage
import Testing
import Virtio

@Suite("The catalogue of devices") struct CatalogTests {
  @Test("Every kind has a name of its own, and is found by it")
  func names() {
    for kind in DeviceKind.all {
      #expect(!kind.rawValue.isEmpty && DeviceKind(rawValue: kind.rawValue) == kind)
      #expect(kind.probe == nil || kind.probe?.name == kind.rawValue)
      #expect(kind.probe != nil || kind.model != nil, "nothing can be done with a \(kind.rawValue)")
    }
    #expect(Set(DeviceKind.all.map(\.rawValue)).count == DeviceKind.all.count)
    #expect(DeviceKind(rawValue: "toaster") == nil)
  }

  @Test("A virtio device that takes no options is the one that its name says, and its probe fits it")
  func optionless() {
    for kind in DeviceKind.all {
      guard case .optionless(let type, _)? = kind.model, let probe = kind.probe else { continue }
      let device = type.init()
      #expect(device.id.name == kind.rawValue)
      #expect(device.maxQueueSizes.count >= probe.queueCount && probe.queue < probe.queueCount)
      #expect(probe.features.isSuperset(of: device.features.bits.filter { $0 < 24 }))
    }
  }

  @Test("A disk without its image is not made")
  func missing() throws {
    guard case .disk(_, let make, _)? = DeviceKind.block.model else {
      Issue.record("a block device is no disk")
      return
    }
    #expect(throws: DiskError.self) { _ = try make(DiskOptions(path: "/nonexistent/image")) }
  }
}
