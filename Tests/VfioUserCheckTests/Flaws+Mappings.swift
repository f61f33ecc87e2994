import DMA
import Examination
import HostIO
import Synchronization

extension Flaw {
  /// Flaws in mappings and their ends.
  static let ofMappings: [Flaw] = [
    Flaw("refuses mappings for reading alone", ["map"]) {
      $0.asks(Number.map) && $0.half(4) == 1 ? .refuse(22) : .pass
    },
    Flaw("refuses address 0", ["map-low"]) { $0.asks(Number.map) && $0[16] == 0 ? .refuse(22) : .pass },
    Flaw(
      "dies of a mapping that fails",
      ["map-odd", "map-short-file", "map-no-file", "map-sealed", "map-mode", "dma-beyond-file"], .crashed
    ) { $0.answers(Number.map) && $0.hasFailed && $0.error != 17 ? .die : .pass },
    Flaw("has room for a thousand mappings", ["map-many"]) {
      $0.asks(Number.map) && $0.mail.count("map") >= 1000 ? .refuse(28) : .pass
    },
    Flaw("knows no end of what it does not have", ["unmap-unknown"]) {
      $0.asks(Number.unmap) && $0[16] > 1 << 40 ? .refuse(2) : .pass
    },
    Flaw("ends one mapping at a time", ["unmap-several"]) {
      $0.asks(Number.unmap) && $0[16] == 16 * 4096 ? .refuse(2) : .pass
    },
    Flaw("acknowledges the end of a part", ["unmap-part"]) {
      $0.asks(Number.unmap) && $0[16] == 0x1000 ? .answer($0.payload) : .pass
    },
    Flaw("acknowledges the end of everything", ["unmap-all"]) {
      $0.asks(Number.unmap) && $0.half(4) == 2 ? .answer($0.payload) : .pass
    },
    Flaw("dies of a bitmap", ["unmap-dirty"], .crashed) { $0.asks(Number.unmap) && $0.half(4) == 1 ? .die : .pass },
    Flaw("takes an empty range for a mapping", ["unmap-empty"]) {
      if $0.asks(Number.unmap), $0[16] == 0 { $0[16] = 0x4000 }
      return .pass
    },
    Flaw("goes round the end of the address space", ["unmap-wraps"]) {
      if $0.asks(Number.unmap), $0[8] &+ $0[16] < $0[8] { $0.put(2, 4, 4) }
      return .pass
    },
  ]

  /// Flaws in what a device reaches.
  static let ofTraffic: [Flaw] = [
    Flaw("does not hear its doorbells", ["dma", "dma-scattered"], nil) { $0.rings ? .drop : .pass },
    Flaw("takes every file from its data on", ["dma-offset", "dma-scattered", "dma-remapped"], nil) {
      if $0.mapsData { $0[8] = 1 << 20 }
      return .pass
    },
    Flaw("knows one file", ["dma-two-files"]) { letter in
      guard letter.asks(Number.map), let file = letter.files.first else { return .pass }
      let known = letter.mail.state.withLock { $0.kept } ?? letter.mail.subject.keep(file)
      letter.mail.state.withLock { $0.kept = known }
      if let known { letter.files = [known] }
      return .pass
    },
    Flaw("maps what nobody asked it to", ["dma-unmapped"]) {
      if $0.asks(Number.map), $0[16] == firstAddress {
        var own = $0
        own[16] = dataAddress
        own[8] = 1 << 20
        own[24] = 1 << 16
        $0.mail.tell(Number.map, own.payload, own.files)
      }
      return .pass
    },
    Flaw("maps more than was asked for", ["dma-hole"]) {
      if $0.mapsData, $0[24] == 4096 { $0[24] = 8192 }
      return .pass
    },
    Flaw("writes where it may only read", ["dma-read-only"]) {
      if $0.asks(Number.map), $0.half(4) == 1 { $0.put(3, 4, 4) }
      return .pass
    },
    Flaw("reads where it may only write", ["dma-write-only"]) {
      if $0.asks(Number.map), $0.half(4) == 2 { $0.put(3, 4, 4) }
      return .pass
    },
    Flaw("takes no notice of DMA_UNMAP", ["dma-taken-back", "dma-remapped", "dma-unmap-under-way", "dma-map-storm"]) {
      $0.asks(Number.unmap) ? .answer($0.payload) : .pass
    },
    Flaw("answers DMA_UNMAP before it is done", ["dma-unmap-under-way"]) {
      $0.asks(Number.unmap) ? .early($0.payload) : .pass
    },
    Flaw("answers RESET before it is done", ["dma-reset"]) { $0.asks(Number.reset) ? .early([]) : .pass },
    Flaw("dies when its rings go", ["dma-rings-taken-back"], .crashed) {
      $0.asks(Number.unmap) && $0[8] == firstAddress && $0[16] > 4096 ? .die : .pass
    },
    Flaw(
      "dies when a client goes whose device is at work", ["dma-gone", "device-restarts"], .crashed, wire: .clinging),
    Flaw("dies of files that are short", ["dma-cut-file"], .crashed) { letter in
      if letter.asks(Number.map), let file = letter.files.first, let known = try? FileIdentity(of: file),
        known.byteCount <= 1 << 16
      {
        letter.mail.mark("short")
      }
      return letter.rings && letter.mail.has("short") ? .die : .pass
    },
    Flaw(
      "asks for what is not mapped", ["message-dma", "message-outside", "message-refused", "message-taken-back"], nil
    ) {
      // When it is told of memory without a descriptor, as large as the rings.
      if $0.answers(Number.map), $0.mail.has("no file") {
        $0.mail.ask(Number.readDMA, [0, 0, 0, 0, 0, 0, 0, 0x66, 64, 0, 0, 0, 0, 0, 0, 0])
      }
      if $0.asks(Number.map), $0.files.isEmpty { $0.mail.mark("no file") }
      return .pass
    },
  ]

  /// Flaws in how clients come and go.
  static let ofClients: [Flaw] = [
    Flaw("resets the device for each client", ["next-client"]) {
      if $0.answers(Number.version) { $0.mail.tell(Number.reset, []) }
      return .pass
    },
    Flaw("remembers mappings of clients that have gone", ["next-mappings"]) { letter in
      guard letter.asks(Number.map) else { return .pass }
      let owner = UInt64(letter.mail.number)
      let known = letter.mail.subject.memory.withLock { [address = letter[16]] in
        let known = $0[address]
        $0[address] = owner
        return known
      }
      return known.map { $0 != owner } == true ? .refuse(17) : .pass
    },
    Flaw("remembers eventfds of clients that have gone", ["next-interrupts"]) { letter in
      if letter.sets(0x24), let file = letter.files.first, let kept = letter.mail.subject.keep(file) {
        letter.mail.subject.memory.withLock { $0[0] = UInt64(kept) }
        letter.mail.mark("mine")
      } else if letter.sets(0x21), !letter.mail.has("mine"),
        let kept = letter.mail.subject.memory.withLock({ $0[0] }),
        let event = try? EventFD(adopting: FileDescriptor.duplicating(Int32(kept)))
      {
        event.signal()
      }
      return .pass
    },
    Flaw("serves twenty clients", ["many-clients"], .crashed) { $0.mail.number > 20 ? .die : .pass },
    Flaw("drops a client when another comes", ["two-clients"]) {
      if $0.asks(Number.version) { for other in $0.mail.subject.others($0.mail) { other.close() } }
      return .pass
    },
  ]

  static let all = ofMessages + ofParts + ofInterrupts + ofMappings + ofTraffic + ofClients
}
