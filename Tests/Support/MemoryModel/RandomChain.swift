import DMA
import VirtioTestKit

extension Machine {
  /// An address for a piece of a request, and how far it may go: mostly one that leads somewhere, at or across the end
  /// of a page.
  private func address(_ view: NaiveModel.View, _ random: inout SeededGenerator) -> UInt64 {
    let pages: [UInt64]
    switch view {
    case .physical: pages = world.data
    case .table:
      guard let unit else { return 0 }
      pages = Array(unit.window) + (kind == .vtd ? (0..<24).map { VTdModelUnit.large + $0 } : [])
    }
    let page = pages.randomElement(using: &random) ?? 0
    return page << 12
      + UInt64(
        random.chance(1, in: 3) ? Int.random(in: 4080..<4096, using: &random) : Int.random(in: 0..<4096, using: &random)
      )
  }

  /// A chain's pieces, those that are read first. Some are empty, some lead nowhere, some too far.
  func chain(for function: ModelFunction, most: Int, _ random: inout SeededGenerator) -> [NaiveModel.Piece] {
    let count = Int.random(in: 1...max(1, most), using: &random)
    let readable = Int.random(in: 0...count, using: &random)
    // One in four is meant to fail somewhere.
    let wild = random.chance(1, in: 4) ? Int.random(in: 0..<count, using: &random) : -1
    var pieces: [NaiveModel.Piece] = []
    for i in 0..<count {
      var at = address(function.view, &random)
      var length: Int =
        switch Int.random(in: 0..<10, using: &random) {
        case 0: 0
        case 1...4: Int.random(in: 1...16, using: &random)
        case 5...8: Int.random(in: 1...300, using: &random)
        default: Int.random(in: 1...9000, using: &random)
        }
      if i == wild || length == 0 {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: at = .max - UInt64.random(in: 0..<64, using: &random)
        case 1: at = 0x6000_0000_0000 + random.next() % (1 << 40)
        case 2: length = length == 0 ? 0 : Int(UInt32.max / 2)
        default: at = 0xe000_0000 + UInt64.random(in: 0..<0x1_0000, using: &random)
        }
      }
      pieces.append(
        NaiveModel.Piece(address: DMAAddress(at), length: UInt32(length), access: i < readable ? .read : .write))
    }
    return pieces
  }

  /// As above, with no more open pages than can be tried in all ways.
  func decidableChain(for function: ModelFunction, most: Int, _ random: inout SeededGenerator) -> [NaiveModel.Piece] {
    var pieces = chain(for: function, most: most, &random)
    while pieces.count > 1, ways(pieces, function.view) > 64 { pieces.removeLast() }
    return pieces
  }

  func ways(_ pieces: [NaiveModel.Piece], _ view: NaiveModel.View) -> Int {
    var all = 1
    for touch in world.model.open(pieces, view) {
      all *= world.model.choices(view, touch.page).count
      if all > 64 { break }
    }
    return all
  }
}
