#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

void clx_futex_wait(const void *word, uint32_t expected, uint64_t nanoseconds) {
  struct timespec t = {(time_t)(nanoseconds / 1000000000u), (long)(nanoseconds % 1000000000u)};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &t, NULL, 0);
}

void clx_futex_wake(const void *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0); }

size_t clx_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void *clx_map_shared(int fd, uint64_t offset, size_t count, int writable, int *error) {
  void *p = mmap(NULL, count, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
  if (p == MAP_FAILED) { *error = errno; return NULL; }
  // A core dump of a back-end must not hold the guest's memory.
  madvise(p, count, MADV_DONTDUMP);
  *error = 0;
  return p;
}

void *clx_map_anonymous(size_t count, int *error) {
  void *p = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) { *error = errno; return NULL; }
  *error = 0;
  return p;
}

int clx_file_identity(int fd, uint64_t *device, uint64_t *inode, uint64_t *size, uint64_t *page) {
  struct stat s;
  if (fstat(fd, &s) != 0) return -errno;
  // Files in huge pages are mapped and unmapped by those.
  struct statfs f;
  *page = fstatfs(fd, &f) == 0 && f.f_type == 0x958458f6 ? (uint64_t)f.f_bsize : (uint64_t)clx_page_size();
  *device = (uint64_t)s.st_dev;
  *inode = (uint64_t)s.st_ino;
  *size = (uint64_t)s.st_size;
  return 0;
}

void clx_unmap(void *base, size_t count) { munmap(base, count); }

// The table is read by a signal handler, so it is a fixed array of atomics: a slot is live while `base` is not 0.
enum { guards = 4096 };
static struct { _Atomic(uintptr_t) base; _Atomic(uintptr_t) end; _Atomic(size_t) page; _Atomic(uint64_t) hits; } guarded[guards];
static struct sigaction before;
static atomic_int installed;

static void on_bus_error(int number, siginfo_t *info, void *context) {
  int saved = errno;
  uintptr_t at = (uintptr_t)info->si_addr;
  for (int i = 0; i < guards; i++) {
    uintptr_t base = atomic_load(&guarded[i].base);
    if (base == 0 || at < base || at >= atomic_load(&guarded[i].end)) continue;
    // A part of a huge page cannot be mapped anew, so it is the whole of it, in pages of the usual size.
    size_t size = atomic_load(&guarded[i].page);
    uintptr_t page = at & ~(uintptr_t)(size - 1);
    if (mmap((void *)page, size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED) break;
    atomic_fetch_add(&guarded[i].hits, 1);
    errno = saved;
    return;
  }
  errno = saved;
  if (before.sa_flags & SA_SIGINFO) { if (before.sa_sigaction) { before.sa_sigaction(number, info, context); return; } }
  else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) { before.sa_handler(number); return; }
  signal(SIGBUS, SIG_DFL);
  raise(SIGBUS);
}

int clx_bus_guard_install(void) {
  int no = 0;
  if (!atomic_compare_exchange_strong(&installed, &no, 1)) return 0;
  struct sigaction a = {0};
  a.sa_sigaction = on_bus_error;
  a.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&a.sa_mask);
  return sigaction(SIGBUS, &a, &before) == 0 ? 0 : -errno;
}

int clx_bus_guard_add(void *base, size_t count, size_t page) {
  for (int i = 0; i < guards; i++) {
    uintptr_t none = 0;
    // The highest address reserves the slot: nothing is at or above it, so the handler matches nothing meanwhile.
    if (!atomic_compare_exchange_strong(&guarded[i].base, &none, UINTPTR_MAX)) continue;
    atomic_store(&guarded[i].hits, 0);
    atomic_store(&guarded[i].page, page);
    atomic_store(&guarded[i].end, (uintptr_t)base + count);
    atomic_store(&guarded[i].base, (uintptr_t)base);
    return i;
  }
  return -1;
}

uint64_t clx_bus_guard_hits(int slot) { return slot < 0 || slot >= guards ? 0 : atomic_load(&guarded[slot].hits); }

void clx_bus_guard_remove(int slot) {
  if (slot < 0 || slot >= guards) return;
  atomic_store(&guarded[slot].base, UINTPTR_MAX);
  atomic_store(&guarded[slot].end, 0);
  atomic_store(&guarded[slot].base, 0);
}
