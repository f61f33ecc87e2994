// Pages that neither the queue's cache nor the space's table knows: the queue asks the space, which may have to ask a
// peer. A walk that meets such a page goes on, to ask for all it can, and is done again when the answers are in.
extension IOTLB {
  /// The most that ``DMASpace/asksPerWalk`` is.
  public static var mostAsksPerWalk: Int { 4096 }

  /// Whether asking for more makes sense in this walk.
  public var mayAsk: Bool { asksLeft > 0 }

  /// Asks the space.
  mutating func ask(_ a: UInt64, _ access: DMAAccess) throws(DMAInterruption) -> HostRun {
    guard asksLeft > 0 else { throw .pending }
    misses &+= 1
    let run: HostRun
    do throws(DMAInterruption) {
      run = try space.translate(DMAAddress(a), for: access, waking: waiter)
    } catch {
      hasAsked = true
      if case .pending = error {
        asksLeft = min(asksLeft - 1, space.asksPerWalk)
        if firstMissing == nil { firstMissing = DMAFault(address: DMAAddress(a), access: access, reason: .exhausted) }
      }
      throw error
    }
    guard run.permissions.allows(access) else {
      throw .fault(DMAFault(address: DMAAddress(a), access: access, reason: .permission))
    }
    return run
  }

  /// Whether the space has a table to look at.
  var hasTable: Bool { unsafe root != nil }

  /// The last byte of the table's entry that has `a` and allows the access, or nil: it would have to be asked for.
  func lastKnown(_ a: UInt64, _ access: DMAAccess) -> UInt64? {
    // Safe: the table is held by this value, and its nodes live until a drain, which waits for this round.
    guard let root = unsafe root else { return nil }
    let entry = unsafe TranslationTable.look(root, a)
    return entry.word & Self.needed(access) == Self.needed(access) ? a | ((1 << entry.shift) - 1) : nil
  }

  /// Asks for the pages that are missing among those after the first of `count` bytes at `address`, so that their
  /// answers come together with the first one's. Nothing is resolved. Returns why one of them cannot be reached, if
  /// that is known.
  public mutating func askAhead(_ address: DMAAddress, count: UInt64, for access: DMAAccess) -> DMAFault? {
    guard count > 0, address.rawValue <= .max - (count - 1) else { return nil }
    let last = address.rawValue + (count - 1)
    var known = address.rawValue | 4095
    while known < last, mayAsk {
      let page = known + 1
      if let end = lastKnown(page, access) {
        known = end
        continue
      }
      do throws(DMAInterruption) {
        _ = try ask(page, access)
      } catch {
        if case .fault(let fault) = error { return fault }
      }
      known = page | 4095
    }
    return nil
  }

  /// Ends a walk. `repeats`: it is to be done again when what it asked for is answered. False if that cannot help,
  /// because the chain needs more mappings at once than are kept. Costs nothing where nothing was asked.
  @inlinable @discardableResult public mutating func endWalk(repeats: Bool) -> Bool {
    hasAsked ? endAskingWalk(repeats) : true
  }

  @usableFromInline mutating func endAskingWalk(_ repeats: Bool) -> Bool {
    asksLeft = Self.mostAsksPerWalk
    hasAsked = repeats
    firstMissing = nil
    return space.walkEnded(waiter, repeats: repeats)
  }
}
