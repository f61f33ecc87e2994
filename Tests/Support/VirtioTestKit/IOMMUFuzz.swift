public import DMA
public import IOMMUInterface
public import Virtio

/// Drives an IOMMU device with arbitrary requests, resets, plugs and unplugs, and compares every answer, and what every
/// endpoint then reaches, with a model: the body of the fuzz target, and of the tests that replay what it found.
///
/// The bytes are steps: an operation (modulo 16), then what it needs, a byte each; what is missing is 0.
public struct IOMMUFuzz {
  /// A device as it was just switched on, over `memory`: `bypass` starts as 0, everything is offered.
  public typealias Make = (_ memory: GuestMemory, _ limits: IOMMUModel.Limits) throws -> any VirtioDevice & IOMMU

  private static let page: UInt64 = 4096
  private static let memoryPages: UInt64 = 32
  private static let numbers: [UInt32] = [8, 9, 10, 0x1_0008]

  private var input: ArraySlice<UInt8>
  private var model: IOMMUModel
  private let device: any VirtioDevice & IOMMU
  private let harness: DeviceHarness
  private let ring: LiteralSplitRing
  private let rings: LiteralMemory
  private let data: DMAAddress
  private var endpoints: [EndpointSpace]
  private var isPlugged: [Bool]

  /// Runs an input. Returns what is wrong, in words, or nil.
  public static func run(_ input: [UInt8], make: Make) -> String? {
    do {
      var fuzz = try IOMMUFuzz(input, make)
      var step = 0
      while !fuzz.input.isEmpty, step < 500 {
        if let problem = try fuzz.step() { return "step \(step): \(problem)" }
        step += 1
      }
      return nil
    } catch {
      return "\(error)"
    }
  }

  private init(_ input: [UInt8], _ make: Make) throws {
    self.input = input[...]
    var limits = IOMMUModel.Limits()
    limits.reserved = [9: [0x5000...0x5fff], 10: [0x2800...0x37ff, .max - 8191 ... .max - 4096]]
    limits.domains = 0...4
    if self.input.popFirst().map({ $0 & 1 == 1 }) ?? false { limits.input = 0x1000 ... .max - 4096 }
    model = IOMMUModel(limits)
    let memory = try GuestMemory(byteCount: Int(Self.memoryPages * Self.page))
    for page in 0..<Self.memoryPages {
      let bytes = [UInt8](repeating: UInt8(page + 1), count: Int(Self.page))
      _ = memory.copy(bytes.span, to: GuestAddress(page * Self.page))
    }
    device = try make(memory, limits)
    endpoints = Self.numbers.dropLast().map {
      EndpointSpace(memory, requester: RequesterID(rawValue: UInt16($0)), isOpen: true)
    }
    isPlugged = endpoints.map { _ in true }
    for endpoint in endpoints {
      device.adopt(endpoint)
      model.plug(UInt32(endpoint.requester.rawValue))
    }
    let own = try GuestMemory(byteCount: 64 << 10)
    rings = LiteralMemory(own)
    let (layout, end) = literalLayout(size: 16, packed: false, at: 0)
    data = DMAAddress(end)
    let features = device.features.subtracting(.ring).union(.version1)
    harness = try DeviceHarness(device, features: features, in: PhysicalSpace(own))
    try harness.start(0, layout)
    ring = LiteralSplitRing(layout, eventIndex: false, inOrder: false, startingAt: 0, in: rings)
  }

  private mutating func next() -> UInt8 { input.popFirst() ?? 0 }

  private func le<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<MemoryLayout<T>.size).map { UInt8(truncatingIfNeeded: value >> T(8 * $0)) }
  }

  /// An address: one of 16 pages at either end of the space, sometimes not at its start.
  private mutating func address() -> UInt64 {
    let byte = next()
    let page = UInt64(byte & 15) * Self.page
    let base = byte & 0x80 != 0 ? UInt64.max - (16 * Self.page - 1) : 0
    return base + page + (byte & 0x70 == 0x70 ? 0x800 : 0)
  }

  private mutating func step() throws -> String? {
    let operation = next() % 16
    switch operation {
    case 0...2:
      let flags = next()
      return try send(
        [1, 0, 0, 0] + le(UInt32(next() % 6)) + le(Self.numbers[Int(next() % 4)])
          + le(UInt32(flags < 250 ? flags & 1 : flags))
          + le(UInt32(flags == 77 ? 0x100 : 0)), room: 4)
    case 3:
      return try send(
        [2, 0, 0, 0] + le(UInt32(next() % 6)) + le(Self.numbers[Int(next() % 4)]) + [next(), 0, 0, 0, 0, 0, 0, 0],
        room: 4)
    case 4...7:
      let flags = next()
      let first = address()
      return try send(
        [3, 0, 0, 0] + le(UInt32(next() % 6)) + le(first)
          + le(first &+ UInt64(next() % 5) &* Self.page &+ Self.page &- 1)
          + le(UInt64(next() % 40) * Self.page) + le(UInt32(flags < 250 ? flags & 7 : flags)), room: 4)
    case 8...10:
      let first = address()
      return try send(
        [4, 0, 0, 0] + le(UInt32(next() % 6)) + le(first) + le(address() &+ Self.page &- 1)
          + le(UInt32(next() == 77 ? 1 : 0)), room: 4)
    case 11:
      return try send(
        [5, 0, 0, 0] + le(Self.numbers[Int(next() % 4)]) + [UInt8](repeating: next(), count: 64), room: Int(next() % 90)
      )
    case 12:
      let count = Int(next() % 90)
      return try send((0..<count).map { _ in next() }, room: Int(next() % 12))
    case 13:
      let offset = Int(next() % 44)
      let value = next() & 3
      device.writeConfiguration(at: offset, from: [value].span)
      if offset == 36, value < 2 { model.bypass = value == 1 }
      let field = device.configuration(1, at: 36)
      if field != [model.bypass ? 1 : 0] { return "bypass reads as \(field)" }
    case 14:
      device.reset()
      device.accepted(harness.features)
      model.reset()
    default:
      let i = Int(next() % 3)
      if isPlugged[i] {
        device.release(endpoints[i])
        model.unplug(Self.numbers[i])
      } else {
        device.adopt(endpoints[i])
        model.plug(Self.numbers[i])
      }
      isPlugged[i].toggle()
    }
    return reached()
  }

  private mutating func send(_ bytes: [UInt8], room: Int) throws -> String? {
    if bytes.isEmpty, room == 0 { return nil }
    rings.write(bytes, at: data)
    rings.write([UInt8](repeating: 0xEE, count: 128), at: data + 4096)
    var chain: [LiteralDescriptor] = []
    if !bytes.isEmpty { chain.append(LiteralDescriptor(data, UInt32(bytes.count))) }
    if room > 0 { chain.append(LiteralDescriptor(data + 4096, UInt32(room), writable: true)) }
    let id = ring.post(chain)
    ring.publish()
    harness.kick(0)
    let used = ring.takeUsed()
    guard used.count == 1, used[0].id == UInt32(id), !harness.hasFailed(0) else {
      return "\(bytes) comes back as \(used)"
    }
    let expected = model.answer(bytes, room: room)
    let written = rings.read(128, at: data + 4096)
    if Int(used[0].length) != expected.used {
      return "\(bytes) with room for \(room) is used with \(used[0].length), not \(expected.used)"
    }
    if let status = expected.status, written[status.at..<status.at + 4] != [status.value, 0, 0, 0] {
      return "\(bytes) ends as \(written[status.at..<status.at + 4]), not \(status.value)"
    }
    if written[expected.used...].contains(where: { $0 != 0xEE }) {
      return "\(bytes) is answered past what is said to be written"
    }
    return reached()
  }

  /// Compares what every endpoint reaches on every page of both ends, the last byte of each.
  private func reached() -> String? {
    for endpoint in endpoints {
      var cache = IOTLB(endpoint)
      _ = cache.beginRound()
      defer { cache.endRound() }
      for n in 0..<32 as Range<UInt64> {
        let address = (n < 16 ? n * Self.page : UInt64.max - ((32 - n) * Self.page - 1)) + (Self.page - 1)
        for access in [DMAAccess.read, .write] {
          let found = cache.byte(address, access)
          let expected: Result<UInt8, DMAInterruption>
          func refused(_ reason: DMAFault.Reason) -> Result<UInt8, DMAInterruption> {
            .failure(.fault(DMAFault(address: DMAAddress(address), access: access, reason: reason)))
          }
          switch model.reach(UInt32(endpoint.requester.rawValue), address, access) {
          case .success(let guest):
            expected =
              guest / Self.page < Self.memoryPages ? .success(UInt8(guest / Self.page + 1)) : refused(.unmapped)
          case .failure(.gone): expected = refused(.stopped)
          case .failure(.unmapped): expected = refused(.unmapped)
          case .failure(.permission): expected = refused(.permission)
          }
          if found != expected {
            return "endpoint \(endpoint.requester) at \(address), \(access): \(found), not \(expected)"
          }
        }
      }
    }
    return nil
  }
}
