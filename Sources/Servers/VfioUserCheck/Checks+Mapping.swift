internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// DMA_MAP, right and wrong, for any device.
  static let mapping: [Check] = [
    Check("map", "DMA_MAP", "Memory with a descriptor can be mapped, and taken back.") { context throws(Finding) in
      let session = try context.session()
      try session.map(ClientMemory.base, 1 << 20)
      try session.map(ClientMemory.base + (1 << 20), 4096, offset: 1 << 20, flags: MapFlags.read)
      try session.unmap(ClientMemory.base, 1 << 20)
      try session.map(ClientMemory.base, 1 << 20)
      return "a megabyte, taken back and mapped again"
    },
    Check("map-low", "DMA_MAP", "Memory can be mapped at address 0, and up to the last page of 64 bits.") {
      context throws(Finding) in
      let session = try context.session()
      try session.map(0, 4096)
      let last = try session.tryMap(UInt64.max - 4095, 4096)
      return "at 0; the last page: \(try session.connection.survived(last))"
    },
    Check("map-overlap", "DMA_MAP", "A mapping over another is refused with EEXIST, and changes nothing.") {
      context throws(Finding) in
      let session = try context.session()
      let base = ClientMemory.base
      try session.map(base + 0x4000, 0x4000)
      for (address, size) in [(0x4000, 0x4000), (0x5000, 0x1000), (0x3000, 0x2000), (0x7000, 0x2000), (0, 0x10000)]
        as [(UInt64, UInt64)]
      {
        let reaction = try session.connection.provoke(
          .mapDMA, Wire.map(base + address, size), descriptors: [session.memory.descriptor])
        guard reaction == .refused(.fileExists) else {
          if case .refused(let error) = reaction {
            throw .broken(
              "\(size) bytes at \(hex(address)) over 16384 at 0x4000 were refused with \(error), not EEXIST")
          }
          throw .broken(
            "\(size) bytes at \(hex(address)) over 16384 at 0x4000: \(try session.connection.survived(reaction))")
        }
      }
      // Beside it there is room.
      try session.map(base + 0x3000, 0x1000)
      try session.map(base + 0x8000, 0x1000)
      try session.unmap(base + 0x4000, 0x4000)
      return "five were, and there is room beside it"
    },
    wrong("map-empty", "A mapping of no bytes is refused.", [(ClientMemory.base, 0, 0)]),
    wrong(
      "map-wraps", "A mapping that passes the end of the address space is refused.",
      [(UInt64.max - 4095, 8192, 0), (ClientMemory.base, UInt64.max - 4095, 0)]),
    wrong(
      "map-offset-wraps", "A mapping whose place in its file passes 2^64 is refused.",
      [(ClientMemory.base, 8192, UInt64.max - 4095)]),
    Check("map-odd", "DMA_MAP", "A mapping that is no whole pages, or has unknown flags, does no harm.") {
      context throws(Finding) in
      let session = try context.session()
      var said: Set<String> = []
      for (address, size, offset, flags) in [
        (ClientMemory.base + 1, 4096, 0, 3), (ClientMemory.base + 0x10000, 100, 0, 3),
        (ClientMemory.base + 0x20000, 4096, 7, 3), (ClientMemory.base + 0x30000, 4096, 0, 0xffff_fff0),
        (ClientMemory.base + 0x40000, 4096, 0, 0),
      ] as [(UInt64, UInt64, UInt64, UInt32)] {
        let reaction = try session.tryMap(address, size, offset: offset, flags: flags)
        said.insert(try session.connection.survived(reaction))
        if reaction == .closed { break }
      }
      return said.sorted().joined(separator: "; ")
    },
    Check("map-short-file", "DMA_MAP", "A mapping that its file does not have is refused or does no harm.") {
      context throws(Finding) in
      let session = try context.session()
      let small = try rethrowing(MemoryFile(name: "small", size: 4096), saying: Finding.notChecked)
      var said: Set<String> = []
      for (size, offset) in [(8192, 0), (4096, 4096), (1 << 40, 0), (4096, 1 << 40)] as [(UInt64, UInt64)] {
        let reaction = try session.tryMap(
          ClientMemory.base, size, offset: offset, .other(small.descriptor.rawValue))
        said.insert(try session.connection.survived(reaction))
        if case .answered = reaction { _ = try session.tryUnmap(ClientMemory.base, size) }
        if reaction == .closed { break }
      }
      return said.sorted().joined(separator: "; ")
    },
    Check("map-no-file", "DMA_MAP", "A descriptor that cannot be mapped is refused or does no harm.") {
      context throws(Finding) in
      let session = try context.session()
      let event = try rethrowing(EventFD(), saying: Finding.notChecked)
      let (ours, theirs) = try rethrowing(UnixSocket.pair(), saying: Finding.notChecked)
      let first = try session.tryMap(ClientMemory.base, 4096, .other(event.rawValue))
      let said = try session.connection.survived(first)
      guard first != .closed else { return said }
      let second = try session.tryMap(ClientMemory.base + 4096, 4096, .other(theirs.rawValue))
      withExtendedLifetime(ours) {}
      return "an eventfd: \(said); a socket: \(try session.connection.survived(second))"
    },
    Check("map-sealed", "DMA_MAP", "Memory that cannot be written is not mapped for writing, or does no harm.") {
      context throws(Finding) in
      let session = try context.session()
      let sealed = try rethrowing(MemoryFile(name: "sealed", size: 4096, seals: .write), saying: Finding.notChecked)
      let readable = try session.tryMap(
        ClientMemory.base, 4096, flags: MapFlags.read, .other(sealed.descriptor.rawValue))
      let writable = try session.tryMap(
        ClientMemory.base + 4096, 4096, flags: MapFlags.both, .other(sealed.descriptor.rawValue))
      return
        "for reading: \(try session.connection.survived(readable)); for writing: \(try session.connection.survived(writable))"
    },
    Check("map-mode", "DMA_MAP", "A mapping that is to be reached through a descriptor, and has none, is refused.") {
      context throws(Finding) in
      let session = try context.session()
      let reaction = try session.tryMap(ClientMemory.base, 4096, flags: MapFlags.both | MapFlags.byMapping, .nothing)
      if case .answered = reaction {
        // The flag is of QEMU 11.1; a server that does not know it takes the mapping for one without a descriptor.
        throw .notOffered("it does not know the flag")
      }
      return try session.connection.survived(reaction)
    },
    Check("map-short", "DMA_MAP", "A payload that is too short or too long is refused or does no harm.") {
      context throws(Finding) in
      let good = Wire.map(ClientMemory.base, 4096)
      var said: Set<String> = []
      for payload in [[], Array(good.prefix(31)), [UInt8](repeating: 0xff, count: 200)] {
        let session = try context.session()
        let reaction = try session.connection.provoke(
          .mapDMA, payload, descriptors: [session.memory.descriptor])
        said.insert(try session.connection.refused(reaction, "DMA_MAP with a payload of \(payload.count) bytes"))
        session.connection.close()
      }
      return said.sorted().joined(separator: "; ")
    },
    Check("map-descriptors", "DMA_MAP", "Descriptors that a command does not take are closed.") {
      context throws(Finding) in
      let connection = try context.connection()
      var pair: (UnixSocket, UnixSocket)? = try rethrowing(UnixSocket.pair(), saying: Finding.notChecked)
      guard let ours = pair?.0, let number = pair?.1.rawValue else { throw .notChecked("there is no pair of sockets") }
      let first = try connection.provoke(
        .getInfo, Wire.words(16, 0, 0, 0), descriptors: [Int32](repeating: number, count: 8))
      _ = try connection.survived(first)
      let second = try connection.provoke(.mapDMA, Wire.map(ClientMemory.base, 0), descriptors: [number, number])
      _ = try connection.survived(second)
      // Ours goes; what the server did not close is open.
      pair = nil
      let isEnded = (try? ours.waitReadable(timeout: context.patience)) == true && ours.isHungUp
      try expect(isEnded && pair == nil, "a socket that came along with a command is still open")
      return "ten, beside two commands"
    },
    Check("map-many", "DMA_MAP", "As many mappings can be made as the server says, and all be taken back.") {
      context throws(Finding) in
      let session = try context.session()
      let most = min(context.offer.number("max_dma_maps", 65_535), 65_535)
      let file = session.memory.descriptor
      var sent: UInt64 = 0, done: UInt64 = 0
      while done < most {
        var batch: [UInt16] = []
        while sent < most, batch.count < 64 {
          let payload = Wire.map(ClientMemory.base + sent * 8192, 4096, offset: sent % 256 * 4096)
          guard let id = try session.connection.post(Command.mapDMA.rawValue, payload, descriptors: [file]) else {
            throw .broken("the connection ended after \(done) mappings")
          }
          batch.append(id)
          sent += 1
        }
        for id in batch {
          switch try session.connection.reaction(to: id, Command.mapDMA.rawValue) {
          case .answered: done += 1
          case .closed: throw .broken("the connection ended after \(done) mappings")
          case .refused(let error):
            throw .broken("it says max_dma_maps \(most), and mapping \(done + 1) was refused: \(error)")
          }
        }
      }
      let over = try session.connection.provoke(
        .mapDMA, Wire.map(ClientMemory.base + most * 8192, 4096), descriptors: [file])
      let said = try session.connection.survived(over)
      session.connection.close()
      let next = try context.session()
      try next.map(ClientMemory.base, 4096)
      return "\(done) mappings; one more: \(said); the next client has none of them"
    },
  ]

  private static func wrong(
    _ name: String, _ sentence: String, _ ranges: [(address: UInt64, size: UInt64, offset: UInt64)]
  ) -> Check {
    Check(name, "DMA_MAP", sentence) { context throws(Finding) in
      var said = ""
      for range in ranges {
        let session = try context.session()
        let reaction = try session.tryMap(range.address, range.size, offset: range.offset)
        said = try session.connection.refused(
          reaction, "\(range.size) bytes at \(hex(range.address)) from \(hex(range.offset)) on")
        session.connection.close()
      }
      return said
    }
  }
}
