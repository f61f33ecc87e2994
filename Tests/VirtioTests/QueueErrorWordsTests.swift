import DMA
import Testing

@testable import Virtio

@Suite("What broke a queue, in words") struct QueueErrorWordsTests {
  private static let reasons: [DMAFault.Reason] = [
    .unmapped, .permission, .discontiguous, .busMasterDisabled, .stopped, .exhausted,
  ]

  @Test("Every error is a clause for people, without a type, a case or a parenthesis of the program's")
  func plain() {
    let faults = Self.reasons.flatMap { reason in
      [DMAAccess.read, .write].map { DMAFault(address: DMAAddress(0x1f000), access: $0, reason: reason) }
    }
    let errors: [QueueError] =
      faults.map { .ring($0) } + [
        .size(3), .misaligned(DMAAddress(0x1f001)), .availableIndex(9, expected: 2), .tooManyAvailable(9),
        .descriptorIndex(77), .chainTooLong,
        .chainTooLarge, .readableAfterWritable, .indirectTable, .bufferID(5), .device("the disk is full"),
      ]
    for error in errors {
      let text = "\(error)"
      #expect(
        text.contains(" ") && !text.contains("(") && !text.contains("DMA") && text.first?.isUppercase == false,
        "\(text)")
    }
    for fault in faults { #expect("\(fault)".contains("0x1f000")) }
    #expect(Set(errors.map { "\($0)" }).count == errors.count)
  }
}
