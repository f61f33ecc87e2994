import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: block devices", .timeLimit(.minutes(10))) struct BlockTests {
  /// A request with data of `count` bytes, which the device has to refuse or may serve.
  private func request(
    _ clause: String, _ transport: Transport, _ type: UInt32, sector: UInt64 = 0, count: UInt32, writable: Bool = false,
    bytes: [UInt8] = [],
    mustFail: Bool = true
  ) throws {
    try attack(clause, on: transport) { session, target in
      if !bytes.isEmpty { target.literal.write(bytes, at: session.data) }
      session.post(
        type, sector: sector, data: count == 0 ? [] : [LiteralDescriptor(session.data, count, writable: writable)])
      let outcome = try session.outcome(session.show())
      if mustFail, case .served = outcome { throw Failure("request \(type) was served") }
      return outcome
    }
  }

  /// Ranges of a discard or write zeroes request (§5.2.6).
  private func ranges(_ count: Int, flags: UInt32 = 0, sectors: UInt32 = 1, sector: UInt64 = 0) -> [UInt8] {
    (0..<count).flatMap { _ in
      (0..<8).map { UInt8(truncatingIfNeeded: sector >> (8 * $0)) }
        + (0..<4).map { UInt8(truncatingIfNeeded: sectors >> (8 * $0)) }
        + (0..<4).map { UInt8(truncatingIfNeeded: flags >> (8 * $0)) }
    }
  }

  @Test("writeback is read before FEATURES_OK", arguments: [Transport].all)
  func writeback(_ transport: Transport) throws {
    try attack("5.2.5.1-1", on: transport, Preparation(stage: .found)) { session, target in
      target.meet()
      target.read(32, 1)
      try session.begin()
      return .untouched
    }
  }

  @Test(
    "A request reads or writes beyond the disk's end", arguments: [Transport].all,
    [UInt64(2048), 2047, .max, 1 << 55, UInt64.max >> 9])
  func beyond(_ transport: Transport, _ sector: UInt64) throws {
    try request("5.2.6.1-1", transport, 0, sector: sector, count: 1024, writable: true)
    try request("5.2.6.1-1", transport, 1, sector: sector, count: 1024)
  }

  @Test("A flush has a sector and data", arguments: [Transport].all, [false, true])
  func flush(_ transport: Transport, _ data: Bool) throws {
    try request("5.2.6.1-2", transport, 4, sector: .max, count: data ? 512 : 0, writable: data, mustFail: false)
  }

  @Test("Data are no whole sectors", arguments: [Transport].all, [UInt32(1), 511, 513, 1000])
  func sectors(_ transport: Transport, _ count: UInt32) throws {
    try request("5.2.6.1-3", transport, 0, count: count, writable: true)
    try request("5.2.6.1-3", transport, 1, count: count)
  }

  @Test("Ranges are cut off in the middle", arguments: [Transport].all, [UInt32(11), 13, 14])
  func cut(_ transport: Transport, _ type: UInt32) throws {
    for count in [UInt32(1), 15, 17, 31] { try request("5.2.6.1-4", transport, type, count: count, bytes: ranges(2)) }
    try request("5.2.6.1-4", transport, type, count: 0)
  }

  @Test(
    "The disk's identity is asked for with another length than 20 bytes", arguments: [Transport].all,
    [UInt32(0), 1, 19, 21, 4096])
  func identity(_ transport: Transport, _ count: UInt32) throws {
    try request("5.2.6.1-5", transport, 8, count: count, writable: true, mustFail: false)
  }

  @Test("A discard, a secure erase, a write zeroes has more ranges than the device takes", arguments: [Transport].all)
  func tooMany(_ transport: Transport) throws {
    for (clause, type) in [("5.2.6.1-6", UInt32(11)), ("5.2.6.1-7", 14), ("5.2.6.1-8", 13)] {
      for count in [33, 256] { try request(clause, transport, type, count: UInt32(16 * count), bytes: ranges(count)) }
    }
  }

  @Test("A discard has the unmap flag, or flags that do not exist", arguments: [Transport].all, [UInt32(1), 2, .max])
  func unmap(_ transport: Transport, _ flags: UInt32) throws {
    try request("5.2.6.1-10", transport, 11, count: 16, bytes: ranges(1, flags: flags))
  }

  @Test(
    "Ranges are beyond the disk's end, or longer than the device takes", arguments: [Transport].all, [UInt32(11), 13])
  func rangesBeyond(_ transport: Transport, _ type: UInt32) throws {
    for (sector, sectors) in [(UInt64(2048), UInt32(1)), (0, 2049), (.max, 1), (1, .max), (.max, .max)] {
      try request("5.2.6.1-1", transport, type, count: 16, bytes: ranges(1, sectors: sectors, sector: sector))
    }
  }

  @Test(
    "Requests for zones come to a disk that has none", arguments: [Transport].all, [UInt32(15), 16, 18, 20, 22, 24, 26])
  func zones(_ transport: Transport, _ type: UInt32) throws {
    try request("5.2.6.1-13", transport, type, count: 512, writable: true)
  }

  @Test(
    "Requests of types that do not exist, with and without data", arguments: [Transport].all,
    [UInt32(2), 3, 5, 6, 7, 10, 0x8000_0000, .max])
  func unknown(_ transport: Transport, _ type: UInt32) throws {
    try request(
      type == 5 ? "5.2.6.3-2" : "5.2.6.1-13", transport, type, count: 512, writable: true, mustFail: type != 5)
    try request(type == 5 ? "5.2.6.3-2" : "5.2.6.1-13", transport, type, count: 0, mustFail: type != 5)
  }

  @Test("A legacy request is in the other byte order", arguments: [Transport].legacy)
  func byteOrder(_ transport: Transport) throws {
    try request("5.2.6.3-1", transport, UInt32(1).byteSwapped, sector: UInt64(1).byteSwapped, count: 512)
  }

  @Test("A request has no header, half of one, no status, or its parts cut anywhere", arguments: [Transport].all, 0..<5)
  func framing(_ transport: Transport, _ way: Int) throws {
    try attack(transport.isLegacy ? "5.2.6.4-1" : "2.7.4.2-1", on: transport) { session, target in
      session.writeHeader(0, sector: 0)
      target.allow(session.data, 512)
      let (header, data, status) = (session.header, session.data, session.status)
      let whole = LiteralDescriptor(status, 1, writable: true)
      switch way {
      case 0: _ = session.ring.post([whole])
      case 1:
        _ = session.ring.post([LiteralDescriptor(header, 15), LiteralDescriptor(data, 512, writable: true), whole])
      case 2: _ = session.ring.post([LiteralDescriptor(header, 16)])
      case 3:
        _ = session.ring.post([
          LiteralDescriptor(header, 1), LiteralDescriptor(header + 1, 14), LiteralDescriptor(header + 15, 1),
          LiteralDescriptor(data, 511, writable: true), LiteralDescriptor(data + 511, 1, writable: true), whole,
        ])
      default:
        _ = session.ring.post([
          LiteralDescriptor(header, 16), LiteralDescriptor(status, 1, writable: true),
          LiteralDescriptor(data, 0, writable: true),
        ])
      }
      return try session.outcome(session.show())
    }
  }
}
