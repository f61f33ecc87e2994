import Machine
import Testing

@Suite("The truth table", .serialized, .timeLimit(.minutes(10))) struct MatrixTests {
  @Test("Every cell of a platform is as the table says", arguments: Platform.all.map(\.name))
  func cells(_ name: String) throws {
    let platform = try #require(Platform.named(name))
    let results = Matrix.run(Matrix.cells(of: platform))
    for result in results {
      if case .failed(let why) = result.verdict { Issue.record("\(result.cell.name): \(why)\n\(result.story.joined(separator: "\n"))") }
    }
    #expect(results.contains { $0.verdict == .passed })
  }
}
