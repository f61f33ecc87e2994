// A file system with one file, `disk`, that answers late: storage with a latency, for tests and for the lab's measurements.
// Linux with /dev/fuse, as root.
#pragma once
#include <stdint.h>

// Starts one. The file has `bytes` bytes, of which byte n is n / 512 * 7 + n, and writes do not change it. A read is
// answered after `read_ms` milliseconds, a write after `write_ms`, a sync after `sync_ms`, everything else at once; any
// number may wait at a time, up to 8192. Returns a number for the other two, or -errno.
int slow_files_start(uint64_t bytes, unsigned read_ms, unsigned write_ms, unsigned sync_ms);
// A descriptor of the folder that `disk` is in: reach it through /proc/self/fd. Nothing is mounted that others see.
int slow_files_root(int number);
// Ends it: what is not answered fails. As the end of this process does.
void slow_files_stop(int number);
