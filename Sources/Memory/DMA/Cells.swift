public import Synchronization

// One aligned cell of memory that another thread, process or machine also uses, loaded or stored exactly once.
// Pointers here come from ranges this module has bounds-checked; they never leave it.

@inlinable @inline(__always)
func load16(_ p: UnsafeMutableRawPointer) -> UInt16 {
  // Safe: callers pass 2-aligned pointers into live mappings; Atomic<UInt16> has the layout of UInt16.
  unsafe p.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.load(ordering: .relaxed)
}
@inlinable @inline(__always)
func loadAcquire16(_ p: UnsafeMutableRawPointer) -> UInt16 {
  // Safe: as load16.
  unsafe p.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.load(ordering: .acquiring)
}
@inlinable @inline(__always)
func store16(_ p: UnsafeMutableRawPointer, _ value: UInt16) {
  // Safe: as load16.
  unsafe p.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(value, ordering: .relaxed)
}
@inlinable @inline(__always)
func storeRelease16(_ p: UnsafeMutableRawPointer, _ value: UInt16) {
  // Safe: as load16.
  unsafe p.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(value, ordering: .releasing)
}
@inlinable @inline(__always)
func load32(_ p: UnsafeMutableRawPointer) -> UInt32 {
  // Safe: as load16, 4-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .relaxed)
}
@inlinable @inline(__always)
func loadAcquire32(_ p: UnsafeMutableRawPointer) -> UInt32 {
  // Safe: as load16, 4-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .acquiring)
}
@inlinable @inline(__always)
func store32(_ p: UnsafeMutableRawPointer, _ value: UInt32) {
  // Safe: as load16, 4-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.store(value, ordering: .relaxed)
}
@inlinable @inline(__always)
func storeRelease32(_ p: UnsafeMutableRawPointer, _ value: UInt32) {
  // Safe: as load16, 4-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.store(value, ordering: .releasing)
}
@inlinable @inline(__always)
func load64(_ p: UnsafeMutableRawPointer) -> UInt64 {
  // Safe: as load16, 8-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed)
}
@inlinable @inline(__always)
func loadAcquire64(_ p: UnsafeMutableRawPointer) -> UInt64 {
  // Safe: as load16, 8-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .acquiring)
}
@inlinable @inline(__always)
func store64(_ p: UnsafeMutableRawPointer, _ value: UInt64) {
  // Safe: as load16, 8-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.store(value, ordering: .relaxed)
}
@inlinable @inline(__always)
func storeRelease64(_ p: UnsafeMutableRawPointer, _ value: UInt64) {
  // Safe: as load16, 8-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.store(value, ordering: .releasing)
}
func exchange64(_ p: UnsafeMutableRawPointer, _ value: UInt64) -> UInt64 {
  // Safe: as load16, 8-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.exchange(value, ordering: .acquiringAndReleasing)
}
func exchange32(_ p: UnsafeMutableRawPointer, _ value: UInt32) -> UInt32 {
  // Safe: as load16, 4-aligned.
  unsafe p.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.exchange(value, ordering: .acquiringAndReleasing)
}
@inlinable @inline(__always)
func fullFence() {
  atomicMemoryFence(ordering: .sequentiallyConsistent)
}
