internal import DMA
internal import IOMMUInterface

/// What a descriptor of the invalidation queue asks for (Intel VT-d specification, "Queued Invalidation Interface").
enum VTdDescriptorType: UInt64 {
  case contextCache = 1
  case iotlb = 2
  case deviceIOTLB = 3
  case wait = 5
}

/// How much a context-cache or IOTLB invalidation concerns; the same numbers in descriptors and in registers.
enum VTdGranularity: UInt64 {
  case all = 1
  case domain = 2
  /// A requester of the context cache, a range of pages of the IOTLB.
  case selective = 3
}

/// A descriptor as it stands in the invalidation queue: two words.
struct VTdDescriptor {
  let low: UInt64
  let high: UInt64

  /// Bytes of one.
  static var byteCount: UInt32 { 16 }
  /// Nil: a type that this unit does not serve.
  var type: VTdDescriptorType? { VTdDescriptorType(rawValue: low & 15) }

  /// As a context-cache invalidation; nil for a granularity that is reserved.
  var contextInvalidation: VTdContextInvalidation? {
    VTdContextInvalidation(
      granularity: low >> 4 & 3, domain: low >> 16, requester: low >> 32, functionMask: low >> 48)
  }
  /// As an IOTLB invalidation; nil for a granularity that is reserved.
  var iotlbInvalidation: VTdIOTLBInvalidation? {
    VTdIOTLBInvalidation(granularity: low >> 4 & 3, domain: low >> 16, pages: high)
  }
  /// As a device-IOTLB invalidation: SID, and ADDR with the S bit.
  var deviceIOTLBInvalidation: (requester: RequesterID, pages: PageRange) {
    (RequesterID(rawValue: UInt16(truncatingIfNeeded: low >> 32)), PageRange(ats: high))
  }
  /// As a wait: whether its end is an interrupt (IF).
  var interrupts: Bool { low & 1 << 4 != 0 }
  /// As a wait: the word that says that it has ended, and where it is stored (SW); nil for none.
  var statusWrite: (data: UInt32, address: GuestAddress)? {
    low & 1 << 5 == 0 ? nil : (UInt32(truncatingIfNeeded: low >> 32), GuestAddress(high & ~3))
  }
}

/// The context entries that an invalidation names.
enum VTdContextInvalidation {
  case all
  case domain(UInt16)
  /// Requesters that are the same but for these bits of their numbers.
  case requester(UInt16, ignoring: UInt16)

  /// From fields of a descriptor or a register, with or without the bits above them; nil for a granularity that is
  /// reserved.
  ///
  /// - Parameter functionMask: FM: it leaves out function bits from the top: 2, then 1, then 0.
  init?(granularity: UInt64, domain: UInt64, requester: UInt64, functionMask: UInt64) {
    switch VTdGranularity(rawValue: granularity) {
    case .all: self = .all
    case .domain: self = .domain(UInt16(truncatingIfNeeded: domain))
    case .selective:
      let ignored: UInt16 = [0, 4, 6, 7][Int(functionMask & 3)]
      self = .requester(UInt16(truncatingIfNeeded: requester), ignoring: ignored)
    case nil: return nil
    }
  }

  func concerns(_ requester: RequesterID, _ context: VTdContext?) -> Bool {
    switch self {
    case .all: true
    case .domain(let domain): context?.domain == domain
    case .requester(let number, let ignored): requester.rawValue & ~ignored == number & ~ignored
    }
  }
}

/// The translations that an IOTLB invalidation names.
enum VTdIOTLBInvalidation {
  case all
  case domain(UInt16)
  case pages(PageRange, domain: UInt16)

  /// From fields of a descriptor or a register, with or without the bits above them; nil for a granularity that is
  /// reserved.
  ///
  /// - Parameter pages: ADDR with AM, the order of how many pages, in bits 5:0.
  init?(granularity: UInt64, domain: UInt64, pages: UInt64) {
    let domain = UInt16(truncatingIfNeeded: domain)
    switch VTdGranularity(rawValue: granularity) {
    case .all: self = .all
    case .domain: self = .domain(domain)
    case .selective: self = .pages(PageRange(around: pages & ~0xFFF, order: pages & 63), domain: domain)
    case nil: return nil
    }
  }

  var pages: PageRange {
    if case .pages(let pages, _) = self { pages } else { .all }
  }

  /// What a device keeps itself it forgets only when it is told so: a requester with a device-TLB is not concerned.
  func concerns(_ context: VTdContext?) -> Bool {
    switch self {
    case .all: context?.hasDeviceIOTLB != true
    case .domain(let domain), .pages(_, let domain): context?.domain == domain && context?.hasDeviceIOTLB == false
    }
  }
}
