import Glibc

/// Processor time of the whole process.
func processCPUTime() -> Duration { .microseconds(clock()) }
