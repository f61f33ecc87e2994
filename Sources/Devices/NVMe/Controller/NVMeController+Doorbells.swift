public import PCI

/// Doorbells as memory: they are all that is in their pages, a tail or a head is never all ones, and only the last value
/// of each counts. The admin queue's come last, so that a queue's own are there before it is deleted.
extension NVMeController: DoorbellFunction {
  public var doorbells: DoorbellArea? {
    DoorbellArea(bar: Self.registerBAR, offset: NVMeRegister.doorbells, count: 2 * state.submissionTails.count)
  }
}
