import SocketMessages
import Testing

@testable import VhostUser

/// Bytes from a string of hexadecimal digits; blanks are for the eye.
private func hex(_ text: String) -> [UInt8] {
  let digits = text.filter { !$0.isWhitespace }
  return stride(from: 0, to: digits.count, by: 2).map { place in
    let start = digits.index(digits.startIndex, offsetBy: place)
    return UInt8(digits[start..<digits.index(start, offsetBy: 2)], radix: 16)!
  }
}

/// A request and the bytes that the interoperation document's layouts give it on a little-endian machine.
private struct Sample: Sendable, CustomTestStringConvertible {
  var request: FrontendRequest
  var number: UInt32
  var payload: String
  init(_ request: FrontendRequest, _ number: UInt32, _ payload: String = "") {
    self.request = request
    self.number = number
    self.payload = payload
  }
  var testDescription: String { request.name }
}

private let region = RegionDescription(
  guestAddress: 0x1_0000_0000, size: 0x2000_0000, frontendAddress: 0x7f61_87ff_f000, offset: 0x8000_0000)
private let regionBytes = "0000000001000000 0000002000000000 00f0ff87617f0000 0000008000000000"

private let samples: [Sample] = [
  Sample(.getFeatures, 1),
  Sample(.setFeatures(0x2_4000_0046), 2, "4600004002000000"),
  Sample(.setOwner, 3),
  Sample(.resetOwner, 4),
  Sample(.setMemoryTable([region]), 5, "01000000 00000000" + regionBytes),
  Sample(.setLogBase(LogArea(size: 0x6000, offset: 0x10)), 6, "0060000000000000 1000000000000000"),
  Sample(.setVringSize(VringState(1, 256)), 8, "01000000 00010000"),
  Sample(
    .setVringAddress(
      VringAddress(
        index: 2, flags: 1, descriptorArea: 0xffff_e000, driverArea: 0xffff_f000, deviceArea: 0xffff_f240,
        log: 0xffff_f241)),
    9, "02000000 01000000 00e0ffff00000000 40f2ffff00000000 00f0ffff00000000 41f2ffff00000000"),
  Sample(.setVringBase(VringState(0, 0x8000_8000)), 10, "00000000 00800080"),
  Sample(.getVringBase(VringState(3, 0)), 11, "03000000 00000000"),
  Sample(.setVringKick(VringDescriptor(4)), 12, "0400000000000000"),
  Sample(.setVringCall(VringDescriptor(index: 255, hasDescriptor: false)), 13, "ff01000000000000"),
  Sample(.setVringError(VringDescriptor(0)), 14, "0000000000000000"),
  Sample(.getProtocolFeatures, 15),
  Sample(.setProtocolFeatures([.multiqueue, .replyAck, .guestAddresses]), 16, "0900200000000000"),
  Sample(.getQueueCount, 17),
  Sample(.setVringEnable(VringState(0, 1)), 18, "00000000 01000000"),
  Sample(.setBackendRequestDescriptor, 21),
  Sample(
    .iotlb(.update(0xffff_f000, 0x1000, to: 0x7fe8_0c17_6000)),
    22, "00f0ffff00000000 0010000000000000 0060170ce87f0000 03 02 000000000000"),
  Sample(
    .iotlb(.invalidate(0xfef0_0000, 0xffff_ffff_0110_0000)),
    22, "0000f0fe00000000 00001001ffffffff 0000000000000000 00 03 000000000000"),
  Sample(.getConfiguration(ConfigurationBytes(offset: 8, bytes: [0, 0])), 24, "08000000 02000000 00000000 0000"),
  Sample(.setConfiguration(ConfigurationBytes(offset: 32, flags: 1, bytes: [7])), 25, "20000000 01000000 01000000 07"),
  Sample(
    .getInflightDescriptor(InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 2, queueSize: 128)),
    31, "0000000000000000 0000000000000000 0200 8000 00000000"),
  Sample(
    .setInflightDescriptor(InflightDescription(mmapSize: 0x2000, mmapOffset: 0x40, queueCount: 1, queueSize: 256)),
    32, "0020000000000000 4000000000000000 0100 0001 00000000"),
  Sample(.resetDevice, 34),
  Sample(.vringKick(VringState(1, 0)), 35, "01000000 00000000"),
  Sample(.getMaxMemorySlots, 36),
  Sample(.addMemoryRegion(region), 37, "0000000000000000" + regionBytes),
  Sample(.removeMemoryRegion(region), 38, "0000000000000000" + regionBytes),
  Sample(.setStatus(0xf), 39, "0f00000000000000"),
  Sample(.getStatus, 40),
  Sample(.setDeviceStateDescriptor(DeviceStateTransfer(direction: .load)), 42, "01000000 00000000"),
  Sample(.checkDeviceState, 43),
]

@Suite("vhost-user message layouts") struct CodecTests {
  @Test("A request of the front-end has the documented number and bytes, both ways", arguments: samples)
  fileprivate func request(_ sample: Sample) throws {
    let payload = hex(sample.payload)
    #expect(sample.request.kind.rawValue == sample.number)
    #expect(sample.request.payload == payload)
    #expect(try FrontendRequest(request: sample.number, payload: payload) == sample.request)
    let size = UInt8(payload.count)
    #expect(sample.request.encoded() == [UInt8(sample.number), 0, 0, 0, 1, 0, 0, 0, size, 0, 0, 0] + payload)
    #expect(sample.request.encoded(needsReply: true)[4] == 9)
  }

  @Test("Every request this code speaks has a sample")
  func complete() {
    let seen = Set(samples.map(\.request.kind))
    #expect(FrontendRequest.Kind.allCases.filter { !seen.contains($0) } == [.setLogDescriptor])
  }

  @Test("A payload one byte short or one byte long is refused", arguments: samples)
  fileprivate func lengths(_ sample: Sample) {
    let payload = hex(sample.payload)
    // Structures with padding may come with or without it, and a table with room for eight regions.
    let padding = [22: 6, 31: 4, 32: 4][sample.number] ?? 0
    if !payload.isEmpty {
      #expect(throws: ProtocolError.self) {
        try FrontendRequest(request: sample.number, payload: Array(payload.dropLast(padding + 1)))
      }
    }
    if sample.number != 5 {
      #expect(throws: ProtocolError.self) { try FrontendRequest(request: sample.number, payload: payload + [0]) }
    }
  }

  @Test("A memory table may come with room for eight regions, and with no more than eight")
  func regionTable() throws {
    let one = FrontendRequest.setMemoryTable([region]).payload
    let roomy = one + [UInt8](repeating: 0xaa, count: 7 * 32)
    #expect(try FrontendRequest(request: 5, payload: roomy) == .setMemoryTable([region]))
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 5, payload: roomy + [0]) }
    var nine = roomy + [UInt8](repeating: 0, count: 32)
    nine[0] = 9
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 5, payload: nine) }
    nine[0] = 0xff
    nine[3] = 0xff
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 5, payload: nine) }
  }

  @Test(
    "Configuration bytes past 256 are refused, also where offset and size add up past 2^32",
    arguments: [
      "00010000 01000000 00000000", "00000000 01010000 00000000", "ffffffff ffffffff 00000000",
      "f0000000 11000000 00000000",
    ])
  func configurationBounds(_ text: String) {
    let payload = hex(text) + [UInt8](repeating: 0, count: 300)
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 24, payload: payload) }
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 25, payload: payload) }
  }

  @Test(
    "Requests that are not served are refused by name",
    arguments: [
      (UInt32(0), "request 0"), (19, "SEND_RARP"), (23, "SET_VRING_ENDIAN"), (28, "POSTCOPY_ADVISE"),
      (41, "GET_SHARED_OBJECT"), (44, "GET_SHMEM_CONFIG"), (45, "request 45"), (0xffff_ffff, "request 4294967295"),
    ])
  func unknown(_ request: UInt32, _ name: String) {
    let error = #expect(throws: ProtocolError.self) { try FrontendRequest(request: request, payload: []) }
    #expect(error?.message == name)
  }

  @Test("An IOTLB message of an unknown type is refused, and undefined permission bytes are kept as they are")
  func iotlb() throws {
    var bytes = FrontendRequest.iotlb(.invalidate(1, 2)).payload
    bytes[24] = 178
    let read = IOTLBMessage(kind: .invalidate, address: 1, size: 2, permission: .init(rawValue: 178))
    #expect(try FrontendRequest(request: 22, payload: bytes) == .iotlb(read))
    #expect(try FrontendRequest(request: 22, payload: Array(bytes.dropLast(6))) == .iotlb(read))
    for type in [UInt8(0), 5, 6, 255] {
      bytes[25] = type
      #expect(throws: ProtocolError.self) { try FrontendRequest(request: 22, payload: bytes) }
    }
  }

  @Test(
    "Device state transfers in unknown directions and phases are refused",
    arguments: [
      "02000000 00000000", "00000000 01000000",
    ])
  func deviceState(_ text: String) {
    #expect(throws: ProtocolError.self) { try FrontendRequest(request: 42, payload: hex(text)) }
  }

  @Test("A header with another version or an oversized payload is refused")
  func header() throws {
    let good = hex("16000000 09000000 20000000")
    let header = try MessageHeader(decoding: good)
    #expect(header.request == 22 && header.size == 32 && header.needsReply && !header.isReply)
    #expect(header.encoded == good)
    for bad in [
      "16000000 00000000 00000000", "16000000 02000000 00000000", "16000000 01000000 01100000",
      "16000000 01000000 ffffffff",
    ] {
      #expect(throws: ProtocolError.self) { try MessageHeader(decoding: hex(bad)) }
    }
  }

  @Test("How many descriptors belong to a message")
  func descriptors() {
    #expect(FrontendRequest.setMemoryTable([region, region]).descriptorCounts == 2...2)
    #expect(FrontendRequest.setVringKick(VringDescriptor(0)).descriptorCounts == 1...1)
    #expect(FrontendRequest.setVringKick(VringDescriptor(index: 0, hasDescriptor: false)).descriptorCounts == 0...0)
    #expect(FrontendRequest.addMemoryRegion(region).descriptorCounts == 1...1)
    #expect(FrontendRequest.removeMemoryRegion(region).descriptorCounts == 0...1)
    #expect(FrontendRequest.getFeatures.descriptorCounts == 0...0)
  }

  @Test("The back-end's answers have the documented bytes, both ways")
  func replies() throws {
    #expect(BackendReply.value(0x1_0000_0002).encoded(to: 1) == hex("01000000 05000000 08000000 0200000001000000"))
    #expect(try BackendReply(to: .getFeatures, payload: hex("0200000001000000")) == .value(0x1_0000_0002))
    #expect(
      BackendReply.vring(VringState(1, 59)).encoded(to: 11)
        == hex("0b000000 05000000 08000000 01000000 3b000000"))
    #expect(try BackendReply(to: .getVringBase, payload: hex("01000000 3b000000")) == .vring(VringState(1, 59)))
    #expect(BackendReply.configuration(nil).encoded(to: 24) == hex("18000000 05000000 00000000"))
    #expect(try BackendReply(to: .getConfiguration, payload: []) == .configuration(nil))
    let area = InflightDescription(mmapSize: 0x1000, mmapOffset: 0, queueCount: 1, queueSize: 128)
    #expect(BackendReply.inflight(area).payload == hex("0010000000000000 0000000000000000 0100 8000 00000000"))
    #expect(try BackendReply(to: .setLogBase, payload: []) == .success)
    #expect(throws: ProtocolError.self) { try BackendReply(to: .getFeatures, payload: [1]) }
  }

  @Test("The back-end's requests have the documented numbers and bytes, both ways")
  func backendRequests() throws {
    let miss = BackendRequest.iotlb(IOTLBMessage(kind: .miss, address: 0xffeb_9806, permission: .read))
    let bytes = hex("0698ebff00000000 0000000000000000 0000000000000000 01 01 000000000000")
    #expect(miss.encoded(needsReply: true) == hex("01000000 09000000 20000000") + bytes)
    #expect(try BackendRequest(request: 1, payload: bytes) == miss)
    #expect(BackendRequest.configurationChange.encoded(needsReply: false) == hex("02000000 01000000 00000000"))
    #expect(try BackendRequest(request: 2, payload: []) == .configurationChange)
    let call = BackendRequest.vringCall(VringState(3, 0))
    #expect(call.encoded(needsReply: false) == hex("04000000 01000000 08000000 03000000 00000000"))
    #expect(try BackendRequest(request: 4, payload: hex("03000000 00000000")) == call)
    #expect(try BackendRequest(request: 5, payload: hex("03000000 00000000")) == .vringError(VringState(3, 0)))
    #expect(throws: ProtocolError.self) { try BackendRequest(request: 3, payload: []) }
    #expect(throws: ProtocolError.self) { try BackendRequest(request: 2, payload: [0]) }
  }

  @Test("Protocol features have the document's bit numbers and names")
  func features() {
    #expect(ProtocolFeatures.deviceState.rawValue == 1 << 19)
    #expect(ProtocolFeatures.vringBaseInflight.rawValue == 1 << 20)
    #expect(ProtocolFeatures.guestAddresses.rawValue == 1 << 21)
    #expect(ProtocolFeatures.sharedMemoryMap.rawValue == 1 << 22)
    #expect(ProtocolFeatures([.multiqueue, .status, .init(rawValue: 1 << 40)]).names == ["MQ", "STATUS", "bit 40"])
  }
}
