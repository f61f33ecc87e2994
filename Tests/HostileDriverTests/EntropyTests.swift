import DMA
import Testing
import Virtio
import VirtioTestKit

@Suite("A hostile driver: entropy devices", .timeLimit(.minutes(10))) struct EntropyTests {
  private static var entropy: Preparation { Preparation(kind: .entropy) }

  @Test("Buffers are device-readable", arguments: Front.all)
  func readable(_ front: Front) throws {
    try attack("5.4.6.1-1", on: front, Self.entropy) { life, _ in
      _ = life.ring.post([LiteralDescriptor(life.data, 64)])
      guard case .used(let used) = life.show(), used.first?.length == 0 else { return .noAnswer }
      return .requestRefused
    }
  }

  @Test("Device-readable memory is before the device-writable", arguments: Front.all)
  func mixed(_ front: Front) throws {
    try attack("5.4.6.1-1", on: front, Self.entropy) { life, victim in
      victim.allow(life.table, 64)
      _ = life.ring.post([LiteralDescriptor(life.data, 64), LiteralDescriptor(life.table, 64, writable: true)])
      guard case .used(let used) = life.show(), used.first?.length == 64 else { return .noAnswer }
      return .served
    }
  }

  @Test("Buffers of nothing, of too much, and where there is no memory", arguments: Front.all)
  func sizes(_ front: Front) throws {
    try attack("5.4.6.1-2", on: front, Self.entropy) { life, _ in
      for one in [LiteralDescriptor(life.foreign, 0, writable: true), LiteralDescriptor(DMAAddress(0x7f_0000_0000), 64, writable: true)] {
        _ = life.ring.post([one])
        guard case .used(let used) = life.show(), used.first?.length == 0 else { return .noAnswer }
      }
      return .requestRefused
    }
  }
}
