import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

/// A virtio-iommu with endpoints behind it, and a driver that writes the bytes of §5.13's tables and shares no code
/// with it.
final class IOMMURig {
  static let page: UInt64 = 4096
  let device: IOMMUDevice
  /// What endpoints reach: 16 pages, each full of its own number plus 1. The device's queues are in memory of their
  /// own.
  let memory: GuestMemory
  let features: Features
  private(set) var endpoints: [UInt32: EndpointSpace] = [:]
  private(set) var requests: DeviceRig

  init(
    _ options: IOMMUOptions = IOMMURig.options(), endpoints: [UInt16] = [8, 9], without: Features = [],
    kind: RingKind = RingKind()
  ) throws {
    memory = try GuestMemory.numbered(pages: 16)
    device = try IOMMUDevice(memory, options: options)
    features = device.features.subtracting(without)
    requests = try DeviceRig(device, features: features, kind: kind, memoryBytes: 1 << 20)
    for endpoint in endpoints { plug(endpoint) }
  }

  /// Options as most tests want them: nothing passes that is not attached.
  static func options(_ change: (inout IOMMUOptions) -> Void = { _ in }) -> IOMMUOptions {
    var options = IOMMUOptions()
    options.bypass = .configured(false)
    change(&options)
    return options
  }

  @discardableResult func plug(_ number: UInt16) -> EndpointSpace {
    let endpoint = device.plug(RequesterID(rawValue: number), memory)
    endpoints[UInt32(number)] = endpoint
    return endpoint
  }

  /// The driver starts again after a reset.
  func restart(without: Features = []) throws {
    requests = try DeviceRig(device, features: device.features.subtracting(without), memoryBytes: 1 << 20)
  }

  // MARK: Requests, byte by byte

  func attachBytes(_ domain: UInt32, _ endpoint: UInt32, flags: UInt32 = 0, reserved: UInt32 = 0) -> [UInt8] {
    [1, 0, 0, 0] + domain.bytes + endpoint.bytes + flags.bytes + reserved.bytes
  }
  func detachBytes(_ domain: UInt32, _ endpoint: UInt32) -> [UInt8] {
    [2, 0, 0, 0] + domain.bytes + endpoint.bytes + [1, 2, 3, 4, 5, 6, 7, 8]
  }
  func mapBytes(_ domain: UInt32, _ first: UInt64, _ last: UInt64, _ physical: UInt64, flags: UInt32 = 3) -> [UInt8] {
    [3, 0, 0, 0] + domain.bytes + first.bytes + last.bytes + physical.bytes + flags.bytes
  }
  func unmapBytes(_ domain: UInt32, _ first: UInt64, _ last: UInt64, reserved: UInt32 = 0) -> [UInt8] {
    [4, 0, 0, 0] + domain.bytes + first.bytes + last.bytes + reserved.bytes
  }
  func probeBytes(_ endpoint: UInt32) -> [UInt8] { [5, 9, 9, 9] + endpoint.bytes + [UInt8](repeating: 7, count: 64) }

  /// Sends a request with room for a tail, and returns the status; -1 when the buffer came back as it was.
  func send(_ bytes: [UInt8]) throws -> Int {
    let (used, answer) = try requests.perform(readable: [bytes], writable: [4])
    if used == 0, answer == [0xEE, 0xEE, 0xEE, 0xEE] { return -1 }
    #expect(
      used == 4 && answer.dropFirst().allSatisfy { $0 == 0 }, "a tail is a status and three bytes of 0, not \(answer)")
    return Int(answer[0])
  }
  func attach(_ domain: UInt32, _ endpoint: UInt32, flags: UInt32 = 0) throws -> Int {
    try send(attachBytes(domain, endpoint, flags: flags))
  }
  func detach(_ domain: UInt32, _ endpoint: UInt32) throws -> Int { try send(detachBytes(domain, endpoint)) }
  /// Pages.
  func map(_ domain: UInt32, _ page: UInt64, _ count: UInt64 = 1, to guest: UInt64, flags: UInt32 = 3) throws -> Int {
    try send(mapBytes(domain, page * Self.page, (page + count) &* Self.page &- 1, guest * Self.page, flags: flags))
  }
  func unmap(_ domain: UInt32, _ page: UInt64, _ count: UInt64 = 1) throws -> Int {
    try send(unmapBytes(domain, page * Self.page, (page + count) * Self.page - 1))
  }
  func mapTop(_ domain: UInt32, to guest: UInt64) throws -> Int {
    try send(mapBytes(domain, .max - 4095, .max, guest * Self.page))
  }

  /// A PROBE with so many bytes of properties: what came back.
  func probe(_ endpoint: UInt32, room: Int = 512) throws -> (used: Int, status: UInt8, properties: [UInt8]) {
    let (used, answer) = try requests.perform(readable: [probeBytes(endpoint)], writable: [room + 4])
    return (Int(used), answer[room], Array(answer[..<room]))
  }

  // MARK: What endpoints reach

  /// What an endpoint finds at an address: a page's number plus 1, or why not.
  func look(_ endpoint: UInt32, _ address: UInt64, _ access: DMAAccess = .read) -> Result<UInt8, DMAInterruption> {
    guard let space = endpoints[endpoint] else { return .success(0) }
    var cache = IOTLB(space)
    _ = cache.beginRound()
    defer { cache.endRound() }
    return cache.byte(address, access)
  }

  func refused(
    _ address: UInt64, _ reason: DMAFault.Reason = .unmapped, _ access: DMAAccess = .read
  ) -> Result<UInt8, DMAInterruption> {
    .failure(.fault(DMAFault(address: DMAAddress(address), access: access, reason: reason)))
  }

  // MARK: Configuration

  func configuration(_ offset: Int = 0, _ count: Int = 40) -> [UInt8] { device.configuration(count, at: offset) }
  func configure(_ bytes: [UInt8], at offset: Int) { device.writeConfiguration(at: offset, from: bytes.span) }
}

/// The numbers of §5.13.6.
enum Status {
  static let untouched = -1, ok = 0, unsupported = 2, invalid = 4, range = 5, noEntry = 6, noMemory = 8
}
