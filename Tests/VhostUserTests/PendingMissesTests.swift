import DMA
import Testing

@testable import VhostUser

private final class Bell: TranslationWaiter {
  func translationArrived() {}
}

@Suite("Who waits for which translation")
struct PendingMissesTests {
  private func ask(_ misses: inout PendingMisses, _ address: UInt64, _ access: DMAAccess, _ bell: Bell) -> PendingMisses.Question? {
    if case .ask(let question) = misses.want(DMAAddress(address), access, bell) { question } else { nil }
  }

  @Test("Queues that want the same page share a question, and all are woken (R115)")
  func shared() throws {
    var misses = PendingMisses()
    let (a, b) = (Bell(), Bell())
    let question = try #require(ask(&misses, 0x1000, .write, a))
    #expect(misses.want(DMAAddress(0x1fff), .write, b) == .wait)
    // A question about writing covers reading.
    #expect(misses.want(DMAAddress(0x1800), .read, b) == .wait)
    #expect(misses.updated(from: 0x1000, through: 0x1fff, permissions: .readWrite).count == 2)
    #expect(misses.answered(question).isEmpty && misses.count == 0)
  }

  @Test("A queue that waits for several pages is woken by the last answer")
  func together() throws {
    var misses = PendingMisses()
    let bell = Bell()
    for page in 1...3 as ClosedRange<UInt64> { _ = try #require(ask(&misses, page << 12, .read, bell)) }
    #expect(misses.updated(from: 0x1000, through: 0x1fff, permissions: .read).isEmpty)
    #expect(misses.updated(from: 0x3000, through: 0x3fff, permissions: .read).isEmpty)
    #expect(misses.updated(from: 0x2000, through: 0x2fff, permissions: .read).count == 1)
  }

  @Test("Two refused pages of one chain end in one fault, and the next chain asks anew")
  func twoRefusals() throws {
    var misses = PendingMisses()
    let bell = Bell()
    let first = try #require(ask(&misses, 0x1000, .read, bell))
    let second = try #require(ask(&misses, 0x2000, .write, bell))
    #expect(misses.answered(first).isEmpty)
    #expect(misses.answered(second).count == 1)
    // However often the chain is looked at before it is given back.
    for _ in 0..<3 {
      #expect(misses.want(DMAAddress(0x1000), .read, bell) == .refused)
      #expect(misses.want(DMAAddress(0x2000), .write, bell) == .refused)
    }
    misses.faulted(DMAAddress(0x1000), .read)
    #expect(ask(&misses, 0x1000, .read, bell) != nil && ask(&misses, 0x2000, .write, bell) != nil)
  }

  @Test("A refusal that comes after its chain has ended is not kept")
  func lateRefusal() throws {
    var misses = PendingMisses()
    let bell = Bell()
    let first = try #require(ask(&misses, 0x1000, .read, bell))
    let second = try #require(ask(&misses, 0x2000, .write, bell))
    _ = misses.answered(first)
    misses.faulted(DMAAddress(0x1000), .read)
    // Woken all the same: it may wait for this page again by now.
    #expect(misses.answered(second).count == 1)
    #expect(ask(&misses, 0x2000, .write, bell) != nil)
  }

  @Test("A reader that waited for a write that is refused asks for itself, and its later writes are not refused for it")
  func readerOfRefusedWrite() throws {
    var misses = PendingMisses()
    let (reader, writer) = (Bell(), Bell())
    let question = try #require(ask(&misses, 0x1000, .write, writer))
    #expect(misses.want(DMAAddress(0x1000), .read, reader) == .wait)
    #expect(misses.answered(question).count == 2)
    #expect(misses.want(DMAAddress(0x1000), .write, writer) == .refused)
    let read = try #require(ask(&misses, 0x1000, .read, reader))
    #expect(ask(&misses, 0x1000, .write, reader) != nil)
    _ = misses.answered(read)
    #expect(misses.want(DMAAddress(0x1000), .read, reader) == .refused)
  }

  @Test("A refusal is one queue's; an invalidation or a mapping ends it")
  func whose() throws {
    var misses = PendingMisses()
    let (a, b) = (Bell(), Bell())
    let question = try #require(ask(&misses, 0x1000, .read, a))
    _ = misses.answered(question)
    let other = try #require(ask(&misses, 0x1000, .read, b))
    _ = misses.updated(from: 0x1000, through: 0x1fff, permissions: .read)
    _ = misses.answered(other)
    #expect(ask(&misses, 0x1000, .read, a) != nil)
    let third = try #require(ask(&misses, 0x5000, .read, a))
    _ = misses.answered(third)
    misses.invalidated(from: 0, through: .max)
    #expect(ask(&misses, 0x5000, .read, a) != nil)
  }

  @Test("An answer belongs to its question, not to a newer one about the same page")
  func serials() throws {
    var misses = PendingMisses()
    let bell = Bell()
    let old = try #require(ask(&misses, 0x1000, .read, bell))
    _ = misses.updated(from: 0x1000, through: 0x1fff, permissions: .read)
    // Taken back before the old answer arrived.
    misses.invalidated(from: 0x1000, through: 0x1fff)
    let new = try #require(ask(&misses, 0x1000, .read, bell))
    #expect(misses.answered(old).isEmpty)
    #expect(misses.want(DMAAddress(0x1000), .read, bell) == .wait)
    #expect(misses.answered(new).count == 1)
    #expect(misses.want(DMAAddress(0x1000), .read, bell) == .refused)
  }

  @Test("After a flush, answers to old questions are ignored and their updates are late, once each (R064)")
  func flush() throws {
    var misses = PendingMisses()
    let bell = Bell()
    let old = try #require(ask(&misses, 0x1000, .read, bell))
    #expect(misses.flush(unanswered: [old]).count == 1)
    #expect(misses.isLate(from: 0x1000, through: 0x1fff))
    #expect(!misses.isLate(from: 0x2000, through: 0x2fff))
    // Somebody new wants the page: the update is theirs as well.
    let new = try #require(ask(&misses, 0x1000, .read, bell))
    #expect(!misses.isLate(from: 0x1000, through: 0x1fff))
    #expect(misses.answered(old).isEmpty)
    #expect(misses.answered(new).count == 1)
    #expect(!misses.isLate(from: 0x1000, through: 0x1fff))
  }
}
