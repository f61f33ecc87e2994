import IOMMUInterface
import Testing
import Virtio

@testable import VirtioIOMMU

/// ATTACH, DETACH and PROBE of §5.13.6.
@Suite("virtio-iommu: attachments")
struct IOMMUAttachTests {
  @Test("ATTACH with reserved bytes set is INVAL, each of them (R143)")
  func reserved() throws {
    let rig = try IOMMURig()
    for byte in 0..<4 {
      #expect(try rig.send(rig.attachBytes(1, 8, reserved: 1 << (8 * UInt32(byte)))) == Status.invalid)
    }
    #expect(rig.device.domains.isEmpty)
    #expect(try rig.attach(1, 8) == Status.ok)
  }

  @Test("ATTACH with an unknown flag is INVAL, the bypass flag too where it is not negotiated (R144)")
  func flags() throws {
    let rig = try IOMMURig()
    for bit in 1..<32 { #expect(try rig.attach(1, 8, flags: 1 << UInt32(bit)) == Status.invalid) }
    #expect(try rig.attach(1, 8, flags: 3) == Status.invalid)
    #expect(rig.device.domains.isEmpty)
    let plain = try IOMMURig(without: .iommuBypassConfig)
    #expect(try plain.attach(1, 8, flags: 1) == Status.invalid)
    #expect(plain.device.domains.isEmpty)
  }

  @Test("ATTACH of an unknown endpoint is NOENT, and no domain comes of it (R145)")
  func unknownEndpoint() throws {
    let rig = try IOMMURig()
    for endpoint in [7, 0xffff, 0x1_0008, 0x8000_0008, .max] as [UInt32] {
      #expect(try rig.attach(1, endpoint) == Status.noEntry)
    }
    #expect(rig.device.domains.isEmpty && rig.device.attachments.count == 2)
    #expect(try rig.map(1, 0, to: 0) == Status.noEntry)
  }

  @Test("ATTACH that contradicts a domain's bypass is INVAL, and the endpoint stays where it was (R146)")
  func inconsistent() throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    #expect(try rig.attach(2, 9, flags: 1) == Status.ok)
    #expect(try rig.attach(2, 8) == Status.invalid && rig.attach(1, 9, flags: 1) == Status.invalid)
    #expect(try rig.attach(1, 8, flags: 1) == Status.invalid, "its own domain, otherwise")
    #expect(rig.look(8, 0) == .success(6) && rig.look(9, 0) == .success(1))
    #expect(rig.device.domains == [1, 2] && rig.device.mappings(of: 1) == 1)
  }

  @Test("ATTACH elsewhere is a DETACH first; a domain that is empty then ends with its mappings (R147)")
  func elsewhere() throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    #expect(try rig.attach(1, 8) == Status.ok, "where it is already")
    #expect(rig.look(8, 0) == .success(6))
    #expect(try rig.attach(2, 8) == Status.ok)
    #expect(rig.look(8, 0) == rig.refused(0) && rig.device.domains == [2])
    #expect(try rig.map(1, 0, to: 5) == Status.noEntry && rig.detach(1, 8) == Status.invalid)
    #expect(try rig.attach(1, 9) == Status.ok)
    #expect(rig.look(9, 0) == rig.refused(0), "a domain of the same number is a new one")
    // From and to bypass domains.
    #expect(try rig.attach(3, 8, flags: 1) == Status.ok && rig.device.domains == [1, 3])
    #expect(rig.look(8, 0) == .success(1))
    #expect(try rig.attach(1, 8) == Status.ok && rig.device.domains == [1])
    #expect(rig.look(8, 0) == rig.refused(0))
  }

  @Test("An endpoint that joins a domain sees its mappings at once, and those to come (R148)")
  func joins() throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 3, 2, to: 5) == Status.ok)
    #expect(try rig.attach(1, 9) == Status.ok)
    #expect(rig.look(9, 4 * 4096) == .success(7))
    #expect(try rig.map(1, 0, to: 1) == Status.ok)
    #expect(rig.look(8, 0) == .success(2) && rig.look(9, 0) == .success(2))
  }

  @Test(
    "DETACH of an unknown endpoint is NOENT, from a domain it is not in INVAL; after it nothing is reached through the domain (R149)"
  )
  func detaches() throws {
    let rig = try IOMMURig()
    #expect(try rig.attach(1, 8) == Status.ok && rig.attach(1, 9) == Status.ok && rig.map(1, 0, to: 5) == Status.ok)
    #expect(
      try rig.detach(1, 7) == Status.noEntry && rig.detach(2, 8) == Status.invalid
        && rig.detach(1, 0x10008) == Status.noEntry)
    #expect(rig.look(8, 0) == .success(6))
    #expect(try rig.detach(1, 8) == Status.ok && rig.detach(1, 8) == Status.invalid)
    #expect(rig.look(8, 0) == rig.refused(0) && rig.look(9, 0) == .success(6))
    #expect(try rig.detach(1, 9) == Status.ok)
    #expect(rig.device.domains.isEmpty)
    #expect(try rig.map(1, 0, to: 5) == Status.noEntry)
  }

  @Test("PROBE lists an endpoint's reserved ranges, one exactly behind the other, and zeroes after them (R160)")
  func probes() throws {
    let rig = try IOMMURig(
      IOMMURig.options {
        $0.reservedMemory = [IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi)]
        $0.reservedMemoryOf = [
          RequesterID(rawValue: 9): [
            IOMMUReservedMemory(0x1000...0x1fff), IOMMUReservedMemory(0xfee0_0000...0xfeef_ffff, .msi),
          ]
        ]
      })
    let msi: [UInt8] = [1, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xff, 0xff, 0xef, 0xfe, 0, 0, 0, 0]
    let own: [UInt8] = [1, 0, 20, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0xff, 0x1f, 0, 0, 0, 0, 0, 0]
    for (endpoint, list) in [(8, msi), (9, own + msi)] as [(UInt32, [UInt8])] {
      let answer = try rig.probe(endpoint)
      #expect(answer.used == 516 && answer.status == 0)
      #expect(answer.properties == list + [UInt8](repeating: 0, count: 512 - list.count))
      // A driver that gives more room than was asked for gets its tail where the specification has it.
      let (used, bytes) = try rig.requests.perform(readable: [rig.probeBytes(endpoint)], writable: [600])
      #expect(used == 516 && bytes[512..<516] == [0, 0, 0, 0] && bytes[516...].allSatisfy { $0 == 0xEE })
    }
    let unknown = try rig.probe(7)
    #expect(unknown.used == 516 && unknown.status == UInt8(Status.noEntry) && unknown.properties.allSatisfy { $0 == 0 })
    for room in [0, 1, 24, 511] {
      let small = try rig.probe(8, room: room)
      #expect(
        small.status == UInt8(Status.invalid) && small.used == room + 4 && small.properties.allSatisfy { $0 == 0 },
        "\(room) bytes of properties")
    }
    #expect(try rig.requests.perform(readable: [rig.probeBytes(8)], writable: [3]).used == 0)
  }

  @Test("A type that is not known, and a request without all its bytes or without a tail, come back untouched (R161)")
  func unknownTypes() throws {
    let rig = try IOMMURig(without: .iommuMapUnmap)
    for type in [0] + Array(6...255) as [UInt8] {
      #expect(try rig.send([type] + [UInt8](repeating: 0, count: 71)) == Status.untouched, "type \(type)")
    }
    #expect(try rig.map(1, 0, to: 0) == Status.untouched && rig.unmap(1, 0) == Status.untouched, "not negotiated")
    let whole = try IOMMURig()
    for bytes in [
      whole.attachBytes(1, 8), whole.detachBytes(1, 8), whole.mapBytes(1, 0, 4095, 0), whole.unmapBytes(1, 0, 4095),
      whole.probeBytes(8),
    ] {
      for count in 1..<bytes.count {
        #expect(try whole.send(Array(bytes.prefix(count))) == Status.untouched, "\(count) bytes of type \(bytes[0])")
      }
      for room in 1..<4 {
        let (used, answer) = try whole.requests.perform(readable: [bytes], writable: [room])
        #expect(used == 0 && answer.allSatisfy { $0 == 0xEE })
      }
      #expect(try whole.requests.perform(readable: [bytes], writable: []).used == 0)
    }
    #expect(whole.device.domains.isEmpty)
  }

  @Test("More domains than the device takes are NOMEM, and one that ends makes room (R167)")
  func domainLimit() throws {
    let rig = try IOMMURig(IOMMURig.options { $0.maxDomains = 2 }, endpoints: [8, 9, 10])
    #expect(try rig.attach(1, 8) == Status.ok && rig.attach(2, 9, flags: 1) == Status.ok)
    #expect(try rig.attach(3, 10) == Status.noMemory)
    #expect(rig.device.attachments[RequesterID(rawValue: 10)] == .some(nil))
    #expect(try rig.attach(3, 8) == Status.ok, "its old domain ends with that")
    #expect(rig.device.domains == [2, 3])
    #expect(try rig.attach(3, 10) == Status.ok && rig.attach(4, 10) == Status.noMemory && rig.attach(4, 9) == Status.ok)
    #expect(rig.device.domains == [3, 4])
  }

  @Test("A domain number outside the range is refused, whether the range was negotiated or not")
  func domainRange() throws {
    for without in [[], Features.iommuDomainRange] {
      let rig = try IOMMURig(IOMMURig.options { $0.domainRange = 5...6 }, without: without)
      #expect(
        try rig.attach(4, 8) == Status.range && rig.attach(7, 8) == Status.range && rig.attach(5, 8) == Status.ok
          && rig.attach(6, 8) == Status.ok)
    }
  }

  @Test(
    "An endpoint whose reserved range is mapped in a domain cannot join it, and one that can pays no attention to others (R154)"
  )
  func incompatible() throws {
    let rig = try IOMMURig(
      IOMMURig.options { $0.reservedMemoryOf = [RequesterID(rawValue: 9): [IOMMUReservedMemory(0x3000...0x3fff)]] })
    #expect(try rig.attach(1, 8) == Status.ok && rig.map(1, 2, 3, to: 2) == Status.ok)
    #expect(try rig.attach(1, 9) == Status.unsupported)
    #expect(rig.device.attachments[RequesterID(rawValue: 9)] == .some(nil))
    #expect(try rig.unmap(1, 2, 3) == Status.ok && rig.attach(1, 9) == Status.ok)
  }
}
