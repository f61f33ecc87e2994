/// A driver of any kind of device, as something that moves bytes between memory and the device, one request at a time:
/// what a workload or a test needs that is the same for each kind. One thread uses it.
public protocol DataDriver: AnyObject, SendableMetatype {
  associatedtype Failure: Error
  /// Bytes that can be read back from where they were written; nil where nothing is stored.
  var byteCount: UInt64? { get }
  /// Bytes from the device into memory, from its start on. Returns how many: all, or fewer if the device likes.
  ///
  /// - Parameter place: where the bytes are stored, a multiple of 512; without a meaning where nothing is stored.
  func receive(from place: UInt64, into data: Span<GuestSegment>) throws(Failure) -> Int
  /// Bytes of memory to the device.
  ///
  /// - Parameter place: where they are to be stored, a multiple of 512.
  /// - Throws: always, of a device that takes no data.
  func send(to place: UInt64, from data: Span<GuestSegment>) throws(Failure)
  /// Resets the device, and takes its memory back.
  func stop() throws(Failure)
}
