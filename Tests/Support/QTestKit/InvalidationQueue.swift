/// VT-d's invalidation queue in guest memory: 128-bit descriptors, a tail register, and a wait descriptor behind every request.
final class InvalidationQueue {
  private let qemu: QEMU
  private let page: UInt64
  private let status: UInt64
  private var tail: UInt64 = 0
  private var serial: UInt32 = 0
  private static let slots: UInt64 = 256

  init(_ qemu: QEMU, page: UInt64, status: UInt64) {
    self.qemu = qemu
    self.page = page
    self.status = status
  }

  func submit(_ what: VTd.Invalidation) throws(QTestError) {
    switch what {
    case .global: try run(low: 2 | 1 << 4, high: 0)
    case .domain(let domain): try run(low: 2 | 2 << 4 | UInt64(domain) << 16, high: 0)
    case .pages(let domain, let address, let order):
      try run(low: 2 | 3 << 4 | UInt64(domain) << 16, high: address & ~0xfff | UInt64(order))
    case .device(let requester, let address, let order):
      // Above one page the length is the position of the lowest clear address bit.
      var high = address & ~0xfff
      if order > 0 {
        let ones = (UInt64(1) << UInt64(order - 1)) - 1
        high = high & ~(UInt64(1) << UInt64(min(order, 51) + 11)) & ~(ones << 12) | ones << 12 | 1
        if order >= 52 { high = 0x7fff_ffff_ffff_f000 | 1 }
      }
      try run(low: 3 | UInt64(requester) << 32, high: high)
    case .immediateGlobal, .immediatePage: throw .missing("a descriptor for a register's command")
    }
  }

  func submitContextFlush() throws(QTestError) { try run(low: 1 | 1 << 4, high: 0) }

  /// One descriptor, then a wait descriptor that writes a serial number to memory.
  private func run(low: UInt64, high: UInt64) throws(QTestError) {
    serial &+= 1
    let wait: UInt64 = 5 | 1 << 5 | UInt64(serial) << 32
    var stores: [(address: UInt64, value: UInt64)] = []
    for (low, high) in [(low, high), (wait, status)] {
      stores += [(page + tail * 16, low), (page + tail * 16 + 8, high)]
      tail = (tail + 1) % Self.slots
    }
    stores.append((VTd.base + 0x88, tail << 4))
    try qemu.store(stores)
    try qemu.wait(for: "VT-d's invalidation wait descriptor") { () throws(QTestError) in
      let state = try qemu.load(VTd.base + 0x34, as: UInt32.self)
      if state & 0x70 != 0 { throw .refused(command: "invalidation 0x\(String(low, radix: 16))", answer: "FSTS 0x\(String(state, radix: 16))") }
      return try qemu.load(status, as: UInt32.self) == serial
    }
  }
}
