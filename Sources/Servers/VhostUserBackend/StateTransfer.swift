internal import HostIO
internal import VhostUser
internal import Virtio

/// Carries the device's own state to or from the front-end when a machine migrates ("Migrating back-end state").
///
/// What travels: eight bytes that say what it is, the device's kind and the length as 32-bit little-endian numbers, and
/// the bytes of `VirtioDevice.saveState()`. Rings and configuration space travel in messages of their own.
struct StateTransfer {
  private static let magic = Array("sluice\0\u{1}".utf8)
  /// More than any device here has to say.
  private static let limit = 1 << 20

  private let stream: ByteStream
  private let direction: DeviceStateTransfer.Direction
  private let device: any VirtioDevice
  private var bytes: [UInt8] = []
  private var done = 0
  /// Nil while bytes are on their way.
  private(set) var result: Bool?
  private(set) var complaint = ""

  /// Begins a transfer over the descriptor of SET_DEVICE_STATE_FD.
  init(
    _ direction: DeviceStateTransfer.Direction, of device: any VirtioDevice, over file: consuming FileDescriptor
  ) throws(HostError) {
    stream = try ByteStream(adopting: file)
    self.direction = direction
    self.device = device
    if direction == .save {
      let state = device.saveState()
      bytes =
        Self.magic + Self.little(device.id.rawValue) + Self.little(UInt32(truncatingIfNeeded: state.count)) + state
    }
  }

  /// The number to poll, and for what.
  var rawValue: Int32 { stream.rawValue }
  var readiness: Readiness { direction == .save ? .writable : .readable }

  /// Moves what can be moved now.
  mutating func advance() {
    guard result == nil else { return }
    do throws(HostError) {
      switch direction {
      case .save: try write()
      case .load: try read()
      }
    } catch {
      end(false, "\(error)")
    }
  }

  private mutating func write() throws(HostError) {
    while done < bytes.count {
      let count = try stream.write(bytes.span.extracting(done..<bytes.count))
      if count == 0 { return }
      done += count
    }
    end(true, "")
  }

  private mutating func read() throws(HostError) {
    var piece = [UInt8](repeating: 0, count: 4096)
    while true {
      var span = piece.mutableSpan
      switch try stream.read(into: &span) {
      case .nothingYet: return
      case .end: return restore()
      case .bytes(let count):
        guard bytes.count + count <= Self.limit else { return end(false, "it is longer than \(Self.limit) bytes") }
        bytes += piece[..<count]
      }
    }
  }

  private mutating func restore() {
    let head = Self.magic.count + 8
    guard bytes.count >= head, Array(bytes[..<Self.magic.count]) == Self.magic else {
      return end(false, "it is not a state this program saved")
    }
    guard Self.number(bytes[Self.magic.count...]) == device.id.rawValue else {
      return end(false, "it is the state of another kind of device")
    }
    guard Int(Self.number(bytes[(Self.magic.count + 4)...])) == bytes.count - head else {
      return end(false, "it is cut short")
    }
    do throws(DeviceError) {
      try device.restoreState(Array(bytes[head...]))
      end(true, "")
    } catch {
      end(false, "\(error)")
    }
  }

  private mutating func end(_ result: Bool, _ complaint: String) {
    self.result = result
    self.complaint = complaint
  }

  private static func little(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }
  private static func number(_ bytes: ArraySlice<UInt8>) -> UInt32 {
    bytes.prefix(4).enumerated().reduce(0) { $0 | UInt32($1.element) << (8 * UInt32($1.offset)) }
  }
}
