// CLinux: what Swift cannot say about memory and the kernel, behind functions that take scalars.
//
// Memory that a driver can write is copied once, behind a compiler barrier. (Single cells are Swift's `Atomic`, which the
// thread sanitizer understands.)
#ifndef CLINUX_H
#define CLINUX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "host.h"

// Copies out of or into memory that another thread or process may write at the same time. The barrier keeps the
// compiler from looking at the shared side a second time.
static inline void clx_copy(void *to, const void *from, size_t count) {
  memcpy(to, from, count);
  __asm__ volatile("" ::: "memory");
}
static inline void clx_zero(void *to, size_t count) {
  memset(to, 0, count);
  __asm__ volatile("" ::: "memory");
}

// A 4-byte word to wait on. `clx_futex_wait` returns when the word is not `expected`, when woken, or after `nanoseconds`.
void clx_futex_wait(const void *word, uint32_t expected, uint64_t nanoseconds);
void clx_futex_wake(const void *word);

// Mappings. Return NULL with the error number in `*error` on failure.
void *clx_map_shared(int fd, uint64_t offset, size_t count, int writable, int *error);
void *clx_map_anonymous(size_t count, int *error);
void clx_unmap(void *base, size_t count);
size_t clx_page_size(void);
// What file a descriptor is: two mappings with equal numbers show the same bytes. Returns 0 or -errno.
int clx_file_identity(int fd, uint64_t *device, uint64_t *inode, uint64_t *size, uint64_t *page);

// A mapping whose file was cut short raises SIGBUS when touched. Guarded ranges get a page of zeroes instead, and the
// guard counts it. `clx_bus_guard_add` returns a slot, or -1 when the table is full.
int clx_bus_guard_install(void);
int clx_bus_guard_add(void *base, size_t count, size_t page);
uint64_t clx_bus_guard_hits(int slot);
void clx_bus_guard_remove(int slot);

#endif
