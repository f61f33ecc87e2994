import IOMMUInterface

/// The numbers of a unit's domains, and the endpoints attached to each.
struct DomainIDs {
  private struct Attachment {
    var domain: UInt16
    var keepsTranslations: Bool
  }
  private let end: Int
  private var next: Int
  private var free: [UInt16] = []
  private var attachments: [RequesterID: Attachment] = [:]
  private var translationCachers: [UInt16: [RequesterID]] = [:]

  /// Numbers `first` and up, below `end`.
  init(from first: Int, to end: Int) {
    next = first
    self.end = min(end, 1 << 16)
  }

  mutating func take() -> UInt16? {
    if let number = free.popLast() { return number }
    guard next < end else { return nil }
    next += 1
    return UInt16(next - 1)
  }

  mutating func give(back number: UInt16) { free.append(number) }

  func isUsed(_ number: UInt16) -> Bool { attachments.values.contains { $0.domain == number } }

  func domain(of requester: RequesterID) -> UInt16? { attachments[requester]?.domain }

  func keepsTranslations(_ requester: RequesterID) -> Bool { attachments[requester]?.keepsTranslations ?? false }

  /// The requesters of a domain that keep translations themselves.
  func translationCachers(in number: UInt16) -> [RequesterID] { translationCachers[number] ?? [] }

  mutating func set(_ requester: RequesterID, _ domain: UInt16?, keepsTranslations: Bool) {
    if let old = attachments.removeValue(forKey: requester) {
      translationCachers[old.domain]?.removeAll { $0 == requester }
    }
    guard let domain else { return }
    attachments[requester] = Attachment(domain: domain, keepsTranslations: keepsTranslations)
    if keepsTranslations { translationCachers[domain, default: []].append(requester) }
  }
}
