public import DriverDMA
public import Virtio

// What every driver does with its device before the first request (§3.1.1).
extension DriverTransport {
  /// Resets the device and waits until it is done (§2.4.2).
  public func reset(waiting wait: BoundedWait) throws(DriverError) {
    status = []
    var last = DeviceStatus()
    let isDone = try wait.until { () throws(DriverError) in
      last = self.status
      return last.isEmpty
    }
    guard isDone else { throw .reset(last) }
  }

  /// Waits until the device has done what `condition` looks for.
  ///
  /// - Throws: ``DriverError/needsReset`` when the device says that it never will, ``DriverError/timeout`` when it says
  ///   nothing.
  func wait(_ wait: BoundedWait, until condition: () throws(DriverError) -> Bool) throws(DriverError) {
    var looks = 0
    let isDone = try wait.until { () throws(DriverError) in
      if try condition() { return true }
      looks += 1
      // A register is slow to read, so now and then.
      if looks % 32 == 0, self.status.contains(.needsReset) { throw .needsReset }
      return false
    }
    guard isDone else { throw status.contains(.needsReset) ? .needsReset : .timeout }
  }

  /// Takes the device over and agrees on features: steps 1 to 6. Queues and DRIVER_OK are the caller's.
  ///
  /// - Parameters:
  ///   - wanted: what the driver can use. What the platform needs is added, see ``DriverPlatform/features(_:of:)``.
  ///   - withheld: not accepted, though it is offered: for tests of the outcome.
  /// - Returns: what was negotiated.
  /// - Throws: the error that makes the driver give up; the device's status is FAILED then, unless the device is beyond
  ///   that.
  public func initialize(
    accepting wanted: Features, on platform: DriverPlatform, withholding withheld: Features = [],
    waiting wait: BoundedWait = BoundedWait()
  ) throws(DriverError) -> Features {
    try reset(waiting: wait)
    status = .acknowledge
    status = [.acknowledge, .driver]
    let offeredFeatures = deviceFeatures
    do throws(DriverError) {
      try platform.check(offeredFeatures: offeredFeatures)
    } catch {
      giveUp()
      throw error
    }
    let features = platform.features(wanted, of: offeredFeatures).subtracting(withheld)
    accept(features)
    // The legacy interface knows no FEATURES_OK (§3.1.2).
    guard features.contains(.version1) else { return features }
    status = [.acknowledge, .driver, .featuresOK]
    guard status.contains(.featuresOK) else {
      giveUp()
      throw .features(features)
    }
    return features
  }

  /// Sets DRIVER_OK: the device is live (step 8).
  public func begin() throws(DriverError) {
    status = status.union(.driverOK)
    let now = status
    if now.contains(.needsReset) { throw .needsReset }
  }

  /// Sets FAILED: the driver has given up on the device (§2.1).
  public func giveUp() { status = status.union(.failed) }

  /// An integer of the configuration space, little-endian (§2.5). Fields that belong together: compare the generation.
  public func readConfiguration<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
    var bytes = InlineArray<8, UInt8>(repeating: 0)
    var span = bytes.mutableSpan
    var part = span.extracting(..<MemoryLayout<T>.size)
    readConfiguration(at: offset, into: &part)
    var value: T = 0
    for i in 0..<MemoryLayout<T>.size { value |= T(truncatingIfNeeded: bytes[i]) << T(truncatingIfNeeded: 8 * i) }
    return value
  }
}
