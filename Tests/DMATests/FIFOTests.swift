import Testing
import VirtioTestKit

@testable import DMA

@Suite("First in, first out") struct FIFOTests {
  @Test("Random appends and takes yield what an array does, over ends and growth")
  func model() {
    var random = SeededGenerator(1)
    var fifo = FIFO<Int>()
    var model: [Int] = []
    for step in 0..<20_000 {
      switch Int.random(in: 0..<10, using: &random) {
      case 0..<(step / 2000 % 2 == 0 ? 7 : 3):
        fifo.append(step)
        model.append(step)
      case 9 where step % 97 == 0:
        fifo.keep { $0 % 3 != 0 }
        model.removeAll { $0 % 3 == 0 }
        let wanted = model.firstIndex { $0 % 7 == 1 }
        #expect(fifo.removeFirst { $0 % 7 == 1 } == wanted.map { model.remove(at: $0) })
      default:
        #expect(fifo.first == model.first)
        #expect(fifo.popFirst() == (model.isEmpty ? nil : model.removeFirst()))
      }
      #expect(fifo.count == model.count && fifo.isEmpty == model.isEmpty)
      if step % 500 == 0 { #expect((0..<fifo.count).map { fifo[$0] } == model) }
    }
    fifo.removeAll()
    #expect(fifo.isEmpty && fifo.popFirst() == nil && fifo.first == nil)
  }
}
