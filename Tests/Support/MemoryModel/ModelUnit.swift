import DMA
import IOMMUInterface
import VirtioTestKit

/// An IOMMU as the model drives it: tables written the way its driver would, and the bookkeeping that the model needs.
protocol ModelUnit: AnyObject {
  /// What the bus is given.
  var iommu: any IOMMU & AddressTranslation { get }
  /// Pages of 4 KiB in one of its own.
  var span: UInt64 { get }
  /// Device pages under which buffers are mapped; a multiple of ``span``.
  var window: ClosedRange<UInt64> { get }
  /// Where a function's 16 pages of rings are mapped.
  func control(_ function: Int) -> UInt64
  /// Whether what tables say may be remembered until it is invalidated, and that they say nothing.
  var remembers: Bool { get }
  var remembersAbsence: Bool { get }
  /// Whether one table is everybody's.
  var sharesTable: Bool { get }
  /// The model's table for a function.
  func table(_ function: Int) -> Int
  /// A function appears under a number: tables are prepared for it.
  func attach(_ function: Int, _ requester: RequesterID)
  /// Makes the entry of the page of ``span`` that starts at device page `page`.
  func set(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?)
  /// The same for one of 2 MiB, if there are such pages. False if not.
  func setLarge(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) -> Bool
  /// Invalidates at least these pages of a table, and says which.
  func invalidate(
    _ table: Int, _ pages: ClosedRange<UInt64>, _ random: inout SeededGenerator
  ) -> [(table: Int, pages: ClosedRange<UInt64>)]
  /// What is wrong with what was reported since the last question, if it should have been this; nil: nothing is.
  func complaint(expecting fault: DMAFault?, from requester: RequesterID) -> String?
}

extension ModelUnit {
  var remembers: Bool { false }
  var remembersAbsence: Bool { false }
  func attach(_ function: Int, _ requester: RequesterID) {}
  func setLarge(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) -> Bool { false }
  func invalidate(
    _ table: Int, _ pages: ClosedRange<UInt64>, _ random: inout SeededGenerator
  ) -> [(table: Int, pages: ClosedRange<UInt64>)] { [] }
  /// Of a unit that only counts.
  func complaint(_ count: UInt64, _ fault: DMAFault?) -> String? {
    count == (fault == nil ? 0 : 1)
      ? nil : "\(count) faults were reported, where there should have been \(fault.map { "\($0)" } ?? "none")"
  }
}
