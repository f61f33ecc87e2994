/// Guest memory as one device reaches it: the test allocates here, and gets addresses for the device. With a table
/// every page is mapped for itself, so adjacent addresses are never adjacent memory; without one an address is
/// guest-physical.
public final class DeviceMemory {
  public let qemu: QEMU
  /// The domain's table; nil without an IOMMU in front of the device.
  public let table: TranslationTable?
  private var frames: [UInt64: UInt64] = [:]
  private var top: UInt64

  /// - `top`: device addresses are handed out downwards from here (as Linux does).
  public init(_ qemu: QEMU, _ table: TranslationTable?, top: UInt64 = 0x1_0000_0000) {
    self.qemu = qemu
    self.table = table
    self.top = top
  }

  /// Page-aligned memory for the device, zeroed; `access` is all the table will allow.
  /// - `scattered`: off, the pages behind it are adjacent in guest memory too.
  public func allocate(_ count: Int, _ access: PageAccess = .both, scattered: Bool = true) throws(QTestError) -> UInt64
  {
    let pages = (count + 4095) / 4096
    guard table != nil else {
      let first = try qemu.frames.take(pages)
      try qemu.fill(first, count: pages * 4096, with: 0)
      return first
    }
    let address = reserve(pages)
    let first = scattered ? 0 : try qemu.frames.take(pages)
    let frames = scattered ? try qemu.frames.takeScattered(pages) : (0..<pages).map { first + UInt64($0) * 4096 }
    for frame in frames { try qemu.fill(frame, count: 4096, with: 0) }
    try map(address, to: frames, access)
    return address
  }

  /// Device addresses for this many pages, with nothing behind them.
  public func reserve(_ pages: Int) -> UInt64 {
    top -= UInt64(pages) * 4096
    return top
  }

  /// Puts pages of guest memory behind device addresses. Nothing is invalidated.
  public func map(_ address: UInt64, to frames: [UInt64], _ access: PageAccess = .both) throws(QTestError) {
    guard let table else { throw .missing("a table to map in") }
    let pages = frames.enumerated().map { (address: address + UInt64($0.offset) * 4096, frame: $0.element) }
    for page in pages { self.frames[page.address] = page.frame }
    try table.map(pages, access)
  }

  /// Takes pages away from the device. Nothing is invalidated. What is in them stays readable through `frame(of:)`
  /// taken before.
  public func unmap(_ address: UInt64, pages: Int = 1) throws(QTestError) {
    guard let table else { throw .missing("a table to unmap from") }
    let addresses = (0..<pages).map { address + UInt64($0) * 4096 }
    for address in addresses { frames[address] = nil }
    try table.unmap(addresses)
  }

  /// Where a byte the device knows by `address` is in guest memory.
  public func frame(of address: UInt64) throws(QTestError) -> UInt64 {
    guard table != nil else { return address }
    guard let frame = frames[address & ~0xfff] else { throw .missing("a page behind 0x\(String(address, radix: 16))") }
    return frame | address & 0xfff
  }

  /// Writes bytes as the processor would, page by page.
  public func write(_ bytes: [UInt8], at address: UInt64) throws(QTestError) {
    var pieces: [(address: UInt64, bytes: [UInt8])] = []
    var done = 0
    for piece in try pieceList(address, count: bytes.count) {
      pieces.append((piece.address, Array(bytes[done..<done + piece.count])))
      done += piece.count
    }
    try qemu.write(pieces)
  }

  /// Reads bytes as the processor would, page by page.
  public func read(_ address: UInt64, count: Int) throws(QTestError) -> [UInt8] {
    try qemu.read(try pieceList(address, count: count))
  }

  /// Writes an integer in one access.
  public func store<T: FixedWidthInteger>(_ address: UInt64, _ value: T) throws(QTestError) {
    try qemu.store(frame(of: address), value)
  }

  /// Reads an integer in one access.
  public func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) throws(QTestError) -> T {
    try qemu.load(frame(of: address))
  }

  private func pieceList(_ address: UInt64, count: Int) throws(QTestError) -> [(address: UInt64, count: Int)] {
    var pieces: [(address: UInt64, count: Int)] = []
    var at = address
    while at < address + UInt64(count) {
      let rest = min(4096 - at & 0xfff, address + UInt64(count) - at)
      let frame = try frame(of: at)
      if let last = pieces.last, last.address + UInt64(last.count) == frame {
        pieces[pieces.count - 1].count += Int(rest)
      } else {
        pieces.append((frame, Int(rest)))
      }
      at += rest
    }
    return pieces
  }
}
