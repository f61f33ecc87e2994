/// VT-d's invalidation queue in guest memory: 128-bit descriptors, a tail register, and a wait descriptor behind every
/// request.
final class InvalidationQueue {
  private let qemu: QEMU
  private let page: UInt64
  private let status: UInt64
  private var tail: UInt64 = 0
  private var serial: UInt32 = 0
  private var isPrepared = false
  private static let slots: UInt64 = 256

  init(_ qemu: QEMU, page: UInt64, status: UInt64) {
    self.qemu = qemu
    self.page = page
    self.status = status
  }

  func submit(_ what: VTd.Invalidation) throws(QTestError) {
    try prepare([Self.descriptor(what)])
    try submit()
  }

  func prepare(_ many: [VTd.Invalidation]) throws(QTestError) {
    var descriptors: [(low: UInt64, high: UInt64)] = []
    for what in many { descriptors.append(try Self.descriptor(what)) }
    try prepare(descriptors)
  }

  private static func descriptor(_ what: VTd.Invalidation) throws(QTestError) -> (low: UInt64, high: UInt64) {
    switch what {
    case .global: return (2 | 1 << 4, 0)
    case .domain(let domain): return (2 | 2 << 4 | UInt64(domain) << 16, 0)
    case .pages(let domain, let address, let order):
      return (2 | 3 << 4 | UInt64(domain) << 16, address & ~0xfff | UInt64(order))
    case .device(let requester, let address, let order):
      // Above one page the length is the position of the lowest clear address bit.
      var high = address & ~0xfff
      if order > 0 {
        let ones = (UInt64(1) << UInt64(order - 1)) - 1
        high = high & ~(UInt64(1) << UInt64(min(order, 51) + 11)) & ~(ones << 12) | ones << 12 | 1
        if order >= 52 { high = 0x7fff_ffff_ffff_f000 | 1 }
      }
      return (3 | UInt64(requester) << 32, high)
    case .immediateGlobal, .immediatePage: throw .missing("a descriptor for a register's command")
    }
  }

  func submitContextFlush() throws(QTestError) {
    try prepare([(low: 1 | 1 << 4, high: 0)])
    try submit()
  }

  /// Writes descriptors, and behind them a wait descriptor that writes a serial number to memory. VT-d does not look at
  /// them yet.
  private func prepare(_ descriptors: [(low: UInt64, high: UInt64)]) throws(QTestError) {
    guard !isPrepared, descriptors.count < Int(Self.slots) - 1 else {
      throw .missing("room for \(descriptors.count) invalidations")
    }
    isPrepared = true
    serial &+= 1
    let wait: UInt64 = 5 | 1 << 5 | UInt64(serial) << 32
    var stores: [(address: UInt64, value: UInt64)] = []
    for (low, high) in descriptors + [(wait, status)] {
      stores += [(page + tail * 16, low), (page + tail * 16 + 8, high)]
      tail = (tail + 1) % Self.slots
    }
    try qemu.store(stores)
  }

  /// Writes the tail register and waits until VT-d is done with all of them.
  func submit() throws(QTestError) {
    isPrepared = false
    try qemu.store(VTd.base + 0x88, tail << 4)
    try qemu.wait(for: "VT-d's invalidation wait descriptor") { () throws(QTestError) in
      let state = try qemu.load(VTd.base + 0x34, as: UInt32.self)
      if state & 0x70 != 0 { throw .refused(command: "invalidations", answer: "FSTS 0x\(String(state, radix: 16))") }
      return try qemu.load(status, as: UInt32.self) == serial
    }
  }
}
