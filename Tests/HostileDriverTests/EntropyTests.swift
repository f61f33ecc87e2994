import DMA
import Testing
import VirtioTestKit

@Suite("A hostile driver: entropy devices", .timeLimit(.minutes(10))) struct EntropyTests {
  private static var entropy: Preparation { Preparation(kind: .entropy) }

  @Test("Buffers are device-readable", arguments: [Transport].all)
  func readable(_ transport: Transport) throws {
    try attack("5.4.6.1-1", on: transport, Self.entropy) { session, _ in
      _ = session.ring.post([LiteralDescriptor(session.data, 64)])
      guard case .used(let used) = session.show(), used.first?.length == 0 else { return .noAnswer }
      return .requestRefused
    }
  }

  @Test("Device-readable memory is before the device-writable", arguments: [Transport].all)
  func mixed(_ transport: Transport) throws {
    try attack("5.4.6.1-1", on: transport, Self.entropy) { session, target in
      target.allow(session.table, 64)
      _ = session.ring.post([LiteralDescriptor(session.data, 64), LiteralDescriptor(session.table, 64, writable: true)])
      guard case .used(let used) = session.show(), used.first?.length == 64 else { return .noAnswer }
      return .served
    }
  }

  @Test("Buffers of nothing, of too much, and where there is no memory", arguments: [Transport].all)
  func sizes(_ transport: Transport) throws {
    try attack("5.4.6.1-2", on: transport, Self.entropy) { session, _ in
      for one in [
        LiteralDescriptor(session.foreign, 0, writable: true),
        LiteralDescriptor(DMAAddress(0x7f_0000_0000), 64, writable: true),
      ] {
        _ = session.ring.post([one])
        guard case .used(let used) = session.show(), used.first?.length == 0 else { return .noAnswer }
      }
      return .requestRefused
    }
  }
}
