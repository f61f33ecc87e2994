internal import DMA
internal import DriverDMA
internal import Examination
internal import HostIO
internal import IOMMUInterface
internal import NVMe
internal import PCI

/// An NVMe controller: its requests read the first blocks of namespace 1.
final class NVMeProbe: Probe {
  let name = "NVMe"
  let failsAlone = true

  /// Whether a device is an NVMe controller.
  static func knows(_ identity: CheckContext.Identity) -> Bool { identity.classCode == 0x01_08_02 }

  let most: UInt64
  private let driver: NVMeDriver
  let access: FunctionAccess

  init(_ session: Session, _ setup: Setup) throws(Finding) {
    let access = FunctionAccess(session)
    self.access = access
    let memory = session.memory
    let pages = GuestPages(
      memory.guest, at: GuestAddress(ClientMemory.base + ClientMemory.page),
      byteCount: ClientMemory.ringBytes - ClientMemory.page)
    var messages: [InterruptMessage] = []
    if let event = setup.event {
      try session.connection.ask(
        .setInterrupts, Wire.interrupts(SetFlags.eventfd | SetFlags.trigger, Part.msix, 0, 1), descriptors: [event])
      messages = [InterruptMessage(address: 0xFEE0_0000, data: 0)]
    }
    // A look a millisecond, and what the server asks for meanwhile.
    let looks = max(1, milliseconds(setup.start ?? session.context.patience))
    let wait = BoundedWait(attempts: looks) { access.attend(.milliseconds(1)) }
    do throws(NVMeDriverError) {
      driver = try NVMeDriver(
        access, mapper: DirectMapper(pages),
        options: NVMeDriverOptions(queueSize: 64, maxSegments: 32, messages: messages, wait: wait))
    } catch {
      if let trouble = access.trouble { throw trouble }
      throw error == .timeout || { if case .notReady = error { true } else { false } }()
        ? .wedged("the device did not start: \(error)") : .broken("the device did not start: \(error)")
    }
    let whole = UInt64(driver.blockSize) * driver.blockCount
    most = min(UInt64(driver.maxTransfer), whole, 64 << 10) & ~(ClientMemory.page - 1)
    guard most > 0 else { throw .notChecked("the namespace has only \(whole) bytes") }
  }

  func request(_ data: [GuestSegment]) throws {
    _ = try driver.submitRead(0, into: data.span)
    driver.publish()
  }

  func reap() throws -> Outcome? {
    guard let completion = try driver.reap() else { return nil }
    return completion.error.map { .failed("\($0)") } ?? .done
  }

  func stop() { try? driver.stop() }
}

/// A function's registers, by messages. A driver cannot be told of a message that went wrong: ``trouble`` is.
final class FunctionAccess: PCIFunctionAccess {
  private let session: Session
  private(set) var trouble: Finding?

  init(_ session: Session) { self.session = session }

  /// Serves what the server asks for, for this long.
  func attend(_ time: Duration) {
    guard trouble == nil else { return }
    do throws(Finding) { try session.connection.attend(time) } catch { trouble = error }
  }

  private func read(_ region: UInt32, _ offset: UInt64, _ width: Int) -> UInt32 {
    guard trouble == nil else { return .max }
    do throws(Finding) {
      return try session.read(region, offset, UInt32(width)).reversed().reduce(0) { $0 << 8 | UInt32($1) }
    } catch {
      trouble = error
      return .max
    }
  }

  private func write(_ region: UInt32, _ offset: UInt64, _ width: Int, _ value: UInt32) {
    guard trouble == nil else { return }
    let bytes = (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * $0)) }
    do throws(Finding) {
      // Posted, as QEMU does it.
      _ = try session.connection.post(
        Command.writeRegion.rawValue, Wire.access(region, offset, UInt32(width)) + bytes, flags: Header.noReply)
    } catch {
      trouble = error
    }
  }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 { read(Part.configuration, UInt64(offset), width) }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    write(Part.configuration, UInt64(offset), width, value)
  }
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 { read(UInt32(index), offset, width) }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    write(UInt32(index), offset, width, value)
  }
}
