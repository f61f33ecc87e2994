internal import HostIO

/// DEVICE_SET_IRQS.
extension HostedFunction {
  /// How many interrupts of a kind the function has.
  func interruptCount(_ index: UInt32) -> Int {
    switch index {
    case VfioInterrupt.pin: hasPin ? 1 : 0
    case VfioInterrupt.msix: table?.vectors ?? 0
    default: 0
    }
  }

  /// Does what `request` says; false: it makes no sense, and nothing was done.
  ///
  /// - Parameter descriptors: the eventfds that came along, for the first interrupts of the range; the rest of the range
  ///   is taken away.
  func set(_ request: SetInterrupts, _ descriptors: inout FileDescriptorList) throws(HostError) -> Bool {
    let data = request.flags & 0x7, action = request.flags & ~0x7
    let all = interruptCount(request.index)
    let (end, overflow) = Int(request.start).addingReportingOverflow(Int(request.count))
    guard !overflow, end <= all, [SetInterrupts.mask, SetInterrupts.unmask, SetInterrupts.trigger].contains(action)
    else { return false }
    let range = Int(request.start)..<end
    switch data {
    case SetInterrupts.dataNone:
      guard request.truths.isEmpty else { return false }
      guard request.count > 0 else {
        guard action == SetInterrupts.trigger, request.start == 0 else { return false }
        for vector in 0..<all { connect(request.index, vector, nil) }
        return true
      }
      for vector in range { act(action, request.index, vector) }
    case SetInterrupts.dataBool:
      guard request.truths.count == range.count else { return false }
      for (vector, truth) in zip(range, request.truths) where truth != 0 { act(action, request.index, vector) }
    case SetInterrupts.dataEventfd:
      // To be told of masking is not offered.
      guard action == SetInterrupts.trigger, descriptors.count <= range.count else { return false }
      for vector in range {
        let event: EventFD?
        if let descriptor = descriptors.takeFirst() { event = try EventFD(adopting: descriptor) } else { event = nil }
        connect(request.index, vector, event)
      }
    default: return false
    }
    return true
  }

  private func connect(_ index: UInt32, _ vector: Int, _ event: EventFD?) {
    if index == VfioInterrupt.pin { interrupts.setPin(event) } else { interrupts.setVector(vector, event) }
  }

  private func act(_ action: UInt32, _ index: UInt32, _ vector: Int) {
    if action == SetInterrupts.trigger { return interrupts.trigger(index, vector) }
    let isMasked = action == SetInterrupts.mask
    if index == VfioInterrupt.pin { interrupts.maskPin(isMasked) } else { program(vector, isMasked: isMasked) }
  }
}
