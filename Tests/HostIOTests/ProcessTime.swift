import Glibc

/// Processor time of the whole process.
func processCPUTime() -> Duration {
  var now = timespec()
  // Safe: one structure of integers, written before the call returns.
  guard unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) == 0 else { return .zero }
  return .seconds(now.tv_sec) + .nanoseconds(now.tv_nsec)
}
