internal import CLinux

/// Fills `bytes` from the kernel's random number generator.
///
/// Any thread may call it. It waits only on a machine that has just started and has gathered no randomness yet.
public func fillWithRandomness(_ bytes: inout MutableSpan<UInt8>) throws(HostError) {
  let result = unsafe bytes.withUnsafeMutableBytes { to in
    // Safe: the memory is the span's, exclusively ours, for the length of the call.
    unsafe host_random(to.baseAddress, to.count)
  }
  try check(result, "getrandom")
}
