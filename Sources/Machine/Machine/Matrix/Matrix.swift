import DeviceCatalog
import Virtio

/// Every cell there is.
public enum Matrix {
  /// The cells of a platform, the impossible ones included; what is refused, or impossible with any data, is one
  /// cell.
  public static func cells(of platform: Platform) -> [Cell] {
    let any = Decision(
      platform: platform, host: .new, property: .auto, acknowledgement: .all, interface: .modern, state: .none,
      device: .block)
    return [any]
      .varying(\.device, over: DeviceKind.inMachines)
      .varying(\.host)
      .varying(\.property)
      .varying(\.acknowledgement)
      .varying(\.interface).filter(\.interfaceIsOneOfTheDevice)
      .varying(\.state)
      .flatMap(cells)
  }

  private static func cells(of decision: Decision) -> [Cell] {
    guard decision.refusal == nil else { return [Cell(decision: decision, data: nil)] }
    let rings: [RingKind?] = decision.device.isVirtio ? RingKind.allCases : [nil]
    return rings.map { DataAxes(ring: $0, descriptors: .direct, shape: .contiguous) }
      .varying(\.descriptors)
      .varying(\.shape)
      .map { Cell(decision: decision, data: $0) }
  }

  /// The cell of a name, as it is printed.
  public static func cell(named name: String) -> Cell? {
    guard let platform = Platform.named(String(name.prefix { $0 != "/" })) else { return nil }
    return cells(of: platform).first { $0.name == name }
  }
}

extension Decision {
  /// Virtio devices are met as virtio, others as what they are.
  fileprivate var interfaceIsOneOfTheDevice: Bool { (interface != .nvme) == device.isVirtio }
}

extension Array {
  /// Each element with every value of an axis, one element after the other.
  fileprivate func varying<Value: CaseIterable>(_ axis: WritableKeyPath<Element, Value>) -> [Element] {
    varying(axis, over: Array<Value>(Value.allCases))
  }

  /// Each element with each of some values of an axis.
  fileprivate func varying<Value>(_ axis: WritableKeyPath<Element, Value>, over values: [Value]) -> [Element] {
    flatMap { element in
      values.map { value in
        var varied = element
        varied[keyPath: axis] = value
        return varied
      }
    }
  }
}
