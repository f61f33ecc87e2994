@testable import VhostUser

extension IOTLBMessage {
  static func update(
    _ address: UInt64, _ size: UInt64, to target: UInt64, _ permission: Permission = [.read, .write]
  ) -> Self {
    Self(kind: .update, address: address, size: size, frontendAddress: target, permission: permission)
  }
  static func invalidate(_ address: UInt64, _ size: UInt64) -> Self {
    Self(kind: .invalidate, address: address, size: size)
  }
}

extension VringState {
  init(_ index: UInt32, _ number: UInt32) { self.init(index: index, number: number) }
}

extension VringDescriptor {
  /// With a descriptor.
  init(_ index: UInt8) { self.init(index: index, hasDescriptor: true) }
}
