import Foundation

/// A machine of QEMU's without a guest: real virtio-pci, real VT-d, and a processor that halted. The test is the guest.
/// One thread at a time.
public final class QEMU {
  /// Where `qemu-system-x86_64` is, if it is installed.
  public static let path = Program.find("qemu-system-x86_64")
  /// What a test that needs it prints when it is not there.
  public static let absence =
    "qemu-system-x86_64 is missing: install Debian's qemu-system-x86 to run the tests against QEMU's virtio-pci and VT-d"

  /// Files of this session.
  public let scratch: Scratch
  /// Pages of guest memory that are still free.
  public let frames: Frames
  private let channel: QTestChannel
  private var monitor: Monitor?

  /// Starts a q35 machine with these devices.
  /// - `memory`: MiB of guest memory; a memfd, as vhost-user needs it.
  /// - `devices`: arguments after the machine's own.
  /// - `lifetime`: seconds after which QEMU is killed.
  /// - `monitored`: with a monitor; one such machine a scratch folder.
  public init(
    memory: Int = 64, _ devices: [String], scratch: Scratch, monitored: Bool = false, lifetime: Double = 60
  ) throws(QTestError) {
    guard let path = Self.path else { throw .missing(Self.absence) }
    self.scratch = scratch
    let image = try scratch.write(HaltImage.bytes, to: "halt-\(UInt32.random(in: 0...UInt32.max)).bin")
    var arguments = [
      "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-bios", image,
      "-m", "\(memory)M", "-object", "memory-backend-memfd,id=mem,size=\(memory)M,share=on",
      "-machine", "q35,memory-backend=mem", "-qtest", "stdio", "-qtest-log", "none",
    ]
    if monitored {
      let path = scratch.file("monitor")
      try Monitor.makePipes(path, in: scratch)
      arguments += ["-chardev", "pipe,id=monitor,path=\(path)", "-mon", "chardev=monitor,mode=control"]
    }
    channel = QTestChannel(try Program(path, arguments + devices, in: scratch, lifetime: lifetime))
    frames = Frames(from: 0x10_0000, to: UInt64(memory) << 20)
    try channel.command("readb 0x0")  // QEMU answers once every device exists, or it is gone
  }

  /// Its monitor, if it was started with one.
  public func openMonitor() throws(QTestError) -> Monitor {
    if let monitor { return monitor }
    let new = try Monitor(scratch.file("monitor"))
    monitor = new
    return new
  }

  /// What QEMU wrote to its error output so far.
  public var said: String { channel.program.said }

  /// Its process.
  public var id: Int32 { channel.program.id }

  /// A path of the guest's memory, for this process to map: byte n is the byte at guest-physical n.
  public func memoryPath() throws(QTestError) -> String {
    let folder = "/proc/\(id)/fd"
    for name in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [] {
      if let file = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(name)"),
        file.hasPrefix("/memfd:memory-backend-memfd")
      {
        return "\(folder)/\(name)"
      }
    }
    throw .missing("the guest's memory among QEMU's files")
  }

  /// Ends the machine at once.
  public func stop() { channel.program.stop(9) }

  // MARK: Ports

  /// A port read of 1, 2 or 4 bytes.
  public func portIn<T: FixedWidthInteger>(_ port: UInt16, as type: T.Type = T.self) throws(QTestError) -> T {
    try number(channel.command("in\(Self.suffix(T.self)) 0x\(String(port, radix: 16))"))
  }

  /// A port write of 1, 2 or 4 bytes.
  public func portOut<T: FixedWidthInteger>(_ port: UInt16, _ value: T) throws(QTestError) {
    try channel.command("out\(Self.suffix(T.self)) 0x\(String(port, radix: 16)) 0x\(String(value, radix: 16))")
  }

  // MARK: Memory and memory-mapped registers

  /// One access of 1, 2, 4 or 8 bytes, as the processor would make it.
  public func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) throws(QTestError) -> T {
    try number(channel.command("read\(Self.suffix(T.self)) 0x\(String(address, radix: 16))"))
  }

  /// One access of 1, 2, 4 or 8 bytes, as the processor would make it.
  public func store<T: FixedWidthInteger>(_ address: UInt64, _ value: T) throws(QTestError) {
    try channel.command(Self.storing(address, value))
  }

  /// Many accesses, in order, for the price of one.
  public func store(_ values: [(address: UInt64, value: UInt64)]) throws(QTestError) {
    try channel.commands(values.map { Self.storing($0.address, $0.value) })
  }

  /// Guest memory, as bytes.
  public func read(_ address: UInt64, count: Int) throws(QTestError) -> [UInt8] {
    if count == 0 { return [] }
    let command = "b64read 0x\(String(address, radix: 16)) 0x\(String(count, radix: 16))"
    let answer = try channel.command(command)
    guard let data = Data(base64Encoded: answer), data.count == count else {
      throw .refused(command: command, answer: answer)
    }
    return Array(data)
  }

  /// Guest memory, as bytes.
  public func write(_ bytes: [UInt8], at address: UInt64) throws(QTestError) { try write([(address, bytes)]) }

  /// Guest memory in several places, in order.
  public func write(_ pieces: [(address: UInt64, bytes: [UInt8])]) throws(QTestError) {
    try channel.commands(
      pieces.filter { !$0.bytes.isEmpty }.map {
        "b64write 0x\(String($0.address, radix: 16)) 0x\(String($0.bytes.count, radix: 16)) \(Data($0.bytes).base64EncodedString())"
      })
  }

  /// Guest memory of several places, in order.
  public func read(_ pieces: [(address: UInt64, count: Int)]) throws(QTestError) -> [UInt8] {
    let wanted = pieces.filter { $0.count > 0 }
    var bytes: [UInt8] = []
    // One at a time: the answers of many could fill the pipe while the commands still fill the other one.
    for piece in wanted { bytes += try read(piece.address, count: piece.count) }
    return bytes
  }

  /// Sets guest memory to one value.
  public func fill(_ address: UInt64, count: Int, with byte: UInt8) throws(QTestError) {
    try channel.command(
      "memset 0x\(String(address, radix: 16)) 0x\(String(count, radix: 16)) 0x\(String(byte, radix: 16))")
  }

  /// Asks until the answer is yes. Each question is a round trip to QEMU, so nothing sleeps here.
  /// - Throws: `.timedOut` after `seconds`.
  public func wait(
    for what: String, seconds: Double = 10, until condition: () throws(QTestError) -> Bool
  ) throws(QTestError) {
    let end = ContinuousClock.now + .seconds(seconds)
    while try !condition() {
      if ContinuousClock.now > end { throw .timedOut(waitingFor: what) }
    }
  }

  private static func suffix<T: FixedWidthInteger>(_: T.Type) -> String {
    switch T.bitWidth {
    case 8: "b"
    case 16: "w"
    case 32: "l"
    default: "q"
    }
  }

  private static func storing<T: FixedWidthInteger>(_ address: UInt64, _ value: T) -> String {
    "write\(suffix(T.self)) 0x\(String(address, radix: 16)) 0x\(String(value, radix: 16))"
  }

  private func number<T: FixedWidthInteger>(_ answer: String) throws(QTestError) -> T {
    guard answer.hasPrefix("0x"), let value = UInt64(answer.dropFirst(2), radix: 16) else {
      throw .refused(command: "a number", answer: answer)
    }
    return T(truncatingIfNeeded: value)
  }
}
