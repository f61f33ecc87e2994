import DMA
import HostIO
import PCI
import Synchronization
import VirtioDrivers

/// Where messages arrive: each wakes whoever waits for the function whose number is its data.
final class ModelPlatform: MessageInterrupts {
  private let arrived: [EventFD]
  /// Whom nobody's message wakes: the one who watches the others.
  static let watcher = World.functions

  init() throws {
    var arrived: [EventFD] = []
    for _ in 0...Self.watcher { arrived.append(try EventFD()) }
    self.arrived = arrived
  }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) { wake(Int(message.data)) }
  func wake(_ number: Int) { if arrived.indices.contains(number) { arrived[number].signal() } }

  /// Waits until `condition` holds. False after 20 seconds: something hangs.
  func wait(_ number: Int, _ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      // A function that may not write memory sends no message, so what it does is looked for now and then.
      if (try? arrived[number].wait(timeout: .milliseconds(2))) == true { _ = try? arrived[number].drain() }
    }
    return true
  }
}

/// A function as its driver reaches it: through the bus, where firmware put it.
final class ModelAccess: PCIFunctionAccess {
  private let bus: PCIBus
  let requester: RequesterID
  var windows: [BARWindow]

  init(_ bus: PCIBus, _ requester: RequesterID, _ windows: [BARWindow]) {
    self.bus = bus
    self.requester = requester
    self.windows = windows
  }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 { bus.readConfiguration(of: requester, at: offset, width: width) }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) { bus.writeConfiguration(of: requester, at: offset, width: width, value) }

  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 {
    guard let window = windows.first(where: { $0.index == index }) else { return .max }
    return window.isIO
      ? bus.read(io: UInt32(window.base + offset), width: width) : UInt32(truncatingIfNeeded: bus.read(memory: window.base + offset, width: width))
  }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    guard let window = windows.first(where: { $0.index == index }) else { return }
    if window.isIO { bus.write(io: UInt32(window.base + offset), width: width, value) } else {
      bus.write(memory: window.base + offset, width: width, UInt64(value))
    }
  }
}
