import DMA
import IOMMUInterface
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioIOMMU

/// MAP and UNMAP of §5.13.6.
@Suite("virtio-iommu: mappings")
struct IOMMUMapTests {
  private func attached(_ options: IOMMUOptions = IOMMURig.options(), without: Features = []) throws -> IOMMURig {
    let rig = try IOMMURig(options, without: without)
    #expect(try rig.attach(1, 8) == Status.ok)
    return rig
  }

  @Test("MAP that is not made of whole pages on both sides is RANGE (R150)", arguments: [UInt64(4096), 65536])
  func aligned(granule: UInt64) throws {
    let rig = try attached(
      IOMMURig.options { $0.pageSizeMask = 0xffff_ffff_ffff_ffff << UInt64(granule.trailingZeroBitCount) })
    for bit in 0..<granule.trailingZeroBitCount {
      let off = UInt64(1) << UInt64(bit)
      #expect(try rig.send(rig.mapBytes(1, granule + off, 3 * granule - 1, 0)) == Status.range)
      #expect(try rig.send(rig.mapBytes(1, granule, 2 * granule - 1 + off, 0)) == Status.range)
      #expect(try rig.send(rig.mapBytes(1, granule, 2 * granule - 1, off)) == Status.range)
    }
    #expect(rig.device.mappings(of: 1) == 0)
    #expect(try rig.send(rig.mapBytes(1, granule, 2 * granule - 1, 0)) == Status.ok)
  }

  @Test("MAP over any part of a mapping is INVAL and changes nothing (R151)")
  func overlap() throws {
    let rig = try attached()
    #expect(try rig.map(1, 4, 4, to: 1) == Status.ok)
    for (page, count) in [(4, 4), (4, 1), (5, 2), (7, 1), (7, 4), (1, 4), (1, 20)] as [(UInt64, UInt64)] {
      #expect(try rig.map(1, page, count, to: 9) == Status.invalid, "pages \(page), \(count) of them")
    }
    #expect(rig.device.mappings(of: 1) == 1)
    for page in 0..<12 as Range<UInt64> {
      #expect(rig.look(8, page * 4096) == (4..<8 ~= page ? .success(UInt8(page - 2)) : rig.refused(page * 4096)))
    }
    #expect(try rig.map(1, 3, to: 0) == Status.ok && rig.map(1, 8, to: 0) == Status.ok)
  }

  @Test("MAP with an unknown flag is INVAL, and with MMIO where that is not negotiated (R152)")
  func flags() throws {
    let rig = try attached()
    for bit in 3..<32 { #expect(try rig.map(1, 0, to: 0, flags: 1 << UInt32(bit) | 3) == Status.invalid) }
    #expect(try rig.map(1, 0, to: 0, flags: 7) == Status.ok)
    let plain = try attached(without: .iommuMMIO)
    #expect(try plain.map(1, 0, to: 0, flags: 7) == Status.invalid && plain.device.mappings(of: 1) == 0)
  }

  @Test("Flags say what endpoints may do, each direction by itself")
  func permissions() throws {
    let rig = try attached()
    for flags in 0..<4 as Range<UInt32> {
      #expect(try rig.map(1, UInt64(flags), to: 4, flags: flags) == Status.ok)
      let address = UInt64(flags) * 4096
      #expect(rig.look(8, address, .read) == (flags & 1 != 0 ? .success(5) : rig.refused(address, .permission)))
      #expect(
        rig.look(8, address, .write) == (flags & 2 != 0 ? .success(5) : rig.refused(address, .permission, .write)))
    }
  }

  @Test("MAP in an unknown domain is NOENT, in a bypass domain INVAL (R153)")
  func domains() throws {
    let rig = try attached()
    #expect(try rig.attach(2, 9, flags: 1) == Status.ok)
    #expect(try rig.map(3, 0, to: 0) == Status.noEntry && rig.map(2, 0, to: 0) == Status.invalid)
    #expect(rig.device.mappings(of: 1) == 0 && rig.device.mappings(of: 2) == nil)
  }

  @Test("MAP over a reserved range of an endpoint that is attached is INVAL, of another not (R154)")
  func reserved() throws {
    let rig = try attached(
      IOMMURig.options {
        $0.reservedMemoryOf = [RequesterID(rawValue: 9): [IOMMUReservedMemory(0x5800...0x67ff, .msi)]]
      })
    #expect(try rig.map(1, 4, 4, to: 0) == Status.ok && rig.unmap(1, 4, 4) == Status.ok)
    #expect(try rig.attach(1, 9) == Status.ok)
    for (page, count) in [(5, 1), (6, 1), (4, 4), (0, 16)] as [(UInt64, UInt64)] {
      #expect(try rig.map(1, page, count, to: 0) == Status.invalid)
    }
    #expect(try rig.map(1, 4, to: 0) == Status.ok && rig.map(1, 7, to: 0) == Status.ok)
    #expect(try rig.detach(1, 9) == Status.ok && rig.map(1, 5, 2, to: 0) == Status.ok)
  }

  @Test("MAP of nothing or backwards is RANGE; the last page of all can be mapped, used and unmapped (R155)")
  func ends() throws {
    let rig = try attached()
    for (first, last) in [(4096, 4095), (8192, 4095), (4096, 0), (0, 0), (.max - 4095, 4095), (8192, 8192)]
      as [(UInt64, UInt64)]
    {
      #expect(try rig.send(rig.mapBytes(1, first, last, 0)) == Status.range)
    }
    #expect(
      try rig.send(rig.mapBytes(1, 4096, 12287, .max - 4095)) == Status.range, "physical addresses that wrap around")
    #expect(try rig.send(rig.mapBytes(1, 0, .max, 0)) == Status.range)
    #expect(rig.device.mappings(of: 1) == 0)
    #expect(try rig.mapTop(1, to: 3) == Status.ok && rig.mapTop(1, to: 3) == Status.invalid)
    #expect(rig.look(8, .max) == .success(4) && rig.look(8, .max - 4096) == rig.refused(.max - 4096))
    #expect(try rig.send(rig.unmapBytes(1, .max - 4095, .max)) == Status.ok)
    #expect(rig.look(8, .max) == rig.refused(.max))
  }

  @Test(
    "MAP outside the input range is RANGE, whether the range was negotiated or not (R156)",
    arguments: [Features(), .iommuInputRange])
  func inputRange(without: Features) throws {
    let rig = try attached(IOMMURig.options { $0.inputRange = 0x4000...0xbfff }, without: without)
    for (page, count) in [(3, 1), (3, 2), (12, 1), (11, 2), (0, 16)] as [(UInt64, UInt64)] {
      #expect(try rig.map(1, page, count, to: 0) == Status.range)
    }
    #expect(try rig.mapTop(1, to: 0) == Status.range && rig.map(1, 4, 8, to: 0) == Status.ok)
    #expect(rig.configuration(8, 16) == UInt64(0x4000).bytes + UInt64(0xbfff).bytes)
  }

  @Test("UNMAP does what the specification's seven examples say, with pages for bytes (R157)")
  func examples() throws {
    /// Mappings, what is unmapped, and whether that succeeds: then nothing is left.
    let examples: [([ClosedRange<UInt64>], ClosedRange<UInt64>, isDone: Bool, left: Int)] = [
      ([], 0...4, true, 0), ([0...9], 0...9, true, 0), ([0...4, 5...9], 0...9, true, 0), ([0...9], 0...4, false, 1),
      ([0...4, 5...9], 0...4, true, 1), ([0...4], 0...9, true, 0), ([0...4, 10...14], 0...14, true, 0),
      // As (4), with whole mappings in the range beside the one that would be split.
      ([0...1, 2...3, 6...9], 0...7, false, 3), ([0...3, 4...5, 6...7], 2...9, false, 3), ([0...9], 3...5, false, 1),
      ([0...9], 5...12, false, 1),
    ]
    for (number, (mappings, range, isDone, left)) in examples.enumerated() {
      let rig = try attached()
      for one in mappings {
        #expect(try rig.map(1, one.lowerBound, one.upperBound - one.lowerBound + 1, to: one.lowerBound) == Status.ok)
      }
      #expect(
        try rig.unmap(1, range.lowerBound, range.upperBound - range.lowerBound + 1)
          == (isDone ? Status.ok : Status.range), "example \(number + 1)")
      #expect(rig.device.mappings(of: 1) == left, "example \(number + 1)")
      for page in 0...14 as ClosedRange<UInt64> {
        let isMapped = mappings.contains { $0.contains(page) } && !(isDone && range.contains(page))
        #expect(
          rig.look(8, page * 4096) == (isMapped ? .success(UInt8(page + 1)) : rig.refused(page * 4096)),
          "example \(number + 1), page \(page)")
      }
    }
  }

  @Test(
    "UNMAP in an unknown domain is NOENT, in a bypass domain INVAL; holes are no matter, and reserved bytes are (R158)")
  func unmaps() throws {
    let rig = try attached()
    #expect(try rig.attach(2, 9, flags: 1) == Status.ok)
    #expect(
      try rig.unmap(3, 0) == Status.noEntry && rig.unmap(2, 0) == Status.invalid && rig.unmap(1, 0, 99) == Status.ok)
    #expect(try rig.map(1, 0, to: 0) == Status.ok && rig.map(1, 5, to: 0) == Status.ok)
    #expect(
      try rig.send(rig.unmapBytes(1, 0, 0xffff, reserved: 1 << 24)) == Status.invalid && rig.device.mappings(of: 1) == 2
    )
    #expect(try rig.send(rig.unmapBytes(1, 8192, 4095)) == Status.range && rig.device.mappings(of: 1) == 2)
    #expect(try rig.send(rig.unmapBytes(1, 0, .max)) == Status.ok && rig.device.mappings(of: 1) == 0)
  }

  @Test("More mappings than a domain takes, or all domains together, are NOMEM, and those that go make room (R167)")
  func limits() throws {
    let rig = try IOMMURig(
      IOMMURig.options {
        $0.maxMappingsPerDomain = 100
        $0.maxMappings = 150
      })
    #expect(try rig.attach(1, 8) == Status.ok && rig.attach(2, 9) == Status.ok)
    for page in 0..<100 as Range<UInt64> { #expect(try rig.map(1, 2 * page, to: 0) == Status.ok) }
    #expect(try rig.map(1, 500, to: 0) == Status.noMemory)
    for page in 0..<50 as Range<UInt64> { #expect(try rig.map(2, 2 * page, to: 0) == Status.ok) }
    #expect(try rig.map(2, 500, to: 0) == Status.noMemory)
    #expect(try rig.unmap(1, 0, 3) == Status.ok && rig.map(2, 500, to: 0) == Status.ok)
    #expect(try rig.detach(1, 8) == Status.ok)
    for page in 600..<649 as Range<UInt64> { #expect(try rig.map(2, page, to: 0) == Status.ok) }
    #expect(try rig.map(2, 700, to: 0) == Status.noMemory)
    #expect(rig.look(9, 648 * 4096) == .success(1))
  }

  @Test("A MAP that one endpoint of a domain forbids is made for none of them (R168)")
  func allOrNone() throws {
    let rig = try IOMMURig(
      IOMMURig.options { $0.reservedMemoryOf = [RequesterID(rawValue: 9): [IOMMUReservedMemory(0x1000...0x1fff)]] },
      endpoints: [8, 9, 10])
    for endpoint in [8, 9, 10] as [UInt32] { #expect(try rig.attach(1, endpoint) == Status.ok) }
    #expect(try rig.map(1, 0, 4, to: 0) == Status.invalid && rig.device.mappings(of: 1) == 0)
    for endpoint in [8, 9, 10] as [UInt32] {
      for page in 0..<4 as Range<UInt64> { #expect(rig.look(endpoint, page * 4096) == rig.refused(page * 4096)) }
    }
  }

  @Test("The page size mask names a granule; a mapping of granules works wherever larger pages would lie (R170)")
  func hints() throws {
    let rig = try attached(IOMMURig.options { $0.pageSizeMask = 1 << 12 | 1 << 21 | 1 << 30 })
    #expect(rig.configuration(0, 8) == UInt64(1 << 12 | 1 << 21 | 1 << 30).bytes)
    // Pages on both sides of a 2 MiB and of a 1 GiB boundary.
    for boundary in [UInt64(1) << 9, 1 << 18] {
      #expect(try rig.map(1, boundary - 3, 7, to: 2) == Status.ok)
      for n in 0..<7 as Range<UInt64> { #expect(rig.look(8, (boundary - 3 + n) * 4096) == .success(UInt8(3 + n))) }
    }
    for mask in [0, 1, 2048, 0xfff] as [UInt64] {
      #expect(throws: DeviceError.self) {
        try IOMMUDevice(rig.memory, options: IOMMURig.options { $0.pageSizeMask = mask })
      }
    }
  }
}
