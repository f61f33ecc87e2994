// Files and block devices behind a disk.
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define RESULT(call) ({ __typeof__(call) r = (call); r < 0 ? -errno : r; })
#define UNINTERRUPTED(call) ({ __typeof__(call) r; do r = (call); while (r < 0 && errno == EINTR); r < 0 ? -errno : r; })

int host_file_open(const char *path, int writable, int direct) {
  int flags = (writable ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0) | O_CLOEXEC | O_NOCTTY;
  int fd = UNINTERRUPTED(open(path, flags | O_NONBLOCK));
  if (fd < 0) return fd;
  // Non-blocking was for a FIFO or a device without medium; io_uring would answer EAGAIN where it should wait.
  if (fcntl(fd, F_SETFL, flags & O_DIRECT) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

static uint64_t queue_attribute(dev_t device, const char *name) {
  // A partition has no queue directory of its own; its disk's is one level up.
  static const char *const places[] = {"/sys/dev/block/%u:%u/queue/%s", "/sys/dev/block/%u:%u/../queue/%s"};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    char path[128];
    snprintf(path, sizeof path, places[i], major(device), minor(device), name);
    FILE *file = fopen(path, "re");
    if (!file) continue;
    unsigned long long value = 0;
    int found = fscanf(file, "%llu", &value);
    fclose(file);
    if (found == 1) return value;
  }
  return 0;
}

int host_file_facts(int fd, struct host_file_facts *facts) {
  struct stat s;
  if (fstat(fd, &s) < 0) return -errno;
  *facts = (struct host_file_facts){
      .size = (uint64_t)s.st_size,
      .allocated = (uint64_t)s.st_blocks * 512,
      .device = s.st_dev,
      .inode = s.st_ino,
      .kind = (uint32_t)host_kind(s.st_mode),
      .logical_block = 512,
      .physical_block = (uint32_t)s.st_blksize,
      .discard_granularity = (uint32_t)s.st_blksize,
  };
  if (!S_ISBLK(s.st_mode)) return 0;
  int logical = 0, offset = 0;
  unsigned physical = 0, minimum = 0, optimal = 0;
  if (ioctl(fd, BLKGETSIZE64, &facts->size) < 0 || ioctl(fd, BLKSSZGET, &logical) < 0) return -errno;
  if (ioctl(fd, BLKPBSZGET, &physical) < 0) physical = (unsigned)logical;
  if (ioctl(fd, BLKIOMIN, &minimum) < 0) minimum = 0;
  if (ioctl(fd, BLKIOOPT, &optimal) < 0) optimal = 0;
  if (ioctl(fd, BLKALIGNOFF, &offset) < 0) offset = 0;
  facts->logical_block = (uint32_t)logical;
  facts->physical_block = physical;
  facts->minimum_io = minimum;
  facts->optimal_io = optimal;
  facts->alignment_offset = offset;
  facts->discard_granularity = (uint32_t)queue_attribute(s.st_rdev, "discard_granularity");
  facts->discard_max = queue_attribute(s.st_rdev, "discard_max_bytes");
  return 0;
}

int host_file_size(int fd, uint64_t *size) {
  struct stat s;
  if (fstat(fd, &s) < 0) return -errno;
  if (S_ISBLK(s.st_mode)) return RESULT(ioctl(fd, BLKGETSIZE64, size));
  *size = (uint64_t)s.st_size;
  return 0;
}

// Reads `length` bytes into memory that is aligned to `alignment` and to nothing larger.
static int direct_read_works(int fd, size_t alignment, size_t length) {
  void *block = NULL;
  if (posix_memalign(&block, 2 * alignment, alignment + length) != 0) return 0;
  ssize_t n = UNINTERRUPTED(pread(fd, (char *)block + alignment, length, 0));
  free(block);
  return n >= 0;
}

int host_file_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) {
#ifdef STATX_DIOALIGN
  struct statx facts;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 && (facts.stx_mask & STATX_DIOALIGN)) {
    if (facts.stx_dio_offset_align == 0) return -ENOTSUP;
    *memory = facts.stx_dio_mem_align ? facts.stx_dio_mem_align : 1;
    *offset = facts.stx_dio_offset_align;
    return 0;
  }
#endif
  // The kernel or file system does not say. Try, smallest first; without a byte to read nothing is refused, so stay large.
  uint64_t size = 0;
  int error = host_file_size(fd, &size);
  if (error) return error;
  int sector = 0;
  uint32_t unit = 0;
  if (ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0) unit = (uint32_t)sector;
  for (uint32_t length = 512; !unit && length <= 4096 && size >= 4096; length *= 2)
    if (direct_read_works(fd, 4096, length)) unit = length;
  if (!unit) unit = 4096;
  *offset = unit;
  *memory = 4096;
  for (uint32_t alignment = 512; alignment < 4096 && size >= unit; alignment *= 2) {
    if (direct_read_works(fd, alignment, unit)) {
      *memory = alignment;
      break;
    }
  }
  return 0;
}

// The walk both directions share. `first` bytes of iov[index] and what follows it are moved already.
static int transfer(int fd, const struct iovec *iov, size_t count, uint64_t skip, uint64_t offset, int writing, int flags,
                    uint64_t *done) {
  *done = 0;
  size_t index = 0, first = skip;
  for (;;) {
    while (index < count && iov[index].iov_len <= first) first -= iov[index++].iov_len;
    if (index == count) return 0;
    // A piece begun is finished on its own, so the caller's array stays as it is.
    struct iovec rest = {.iov_base = (char *)iov[index].iov_base + first, .iov_len = iov[index].iov_len - first};
    const struct iovec *from = first ? &rest : iov + index;
    int pieces = first ? 1 : count - index < IOV_MAX ? (int)(count - index) : IOV_MAX;
    uint64_t position;
    if (__builtin_add_overflow(offset, *done, &position) || position > INT64_MAX) return -EINVAL;
    ssize_t n = writing ? pwritev2(fd, from, pieces, (off_t)position, flags) : preadv(fd, from, pieces, (off_t)position);
    if (n < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    // A write that takes nothing and says nothing would go round for ever.
    if (n == 0) return writing ? -EIO : 0;
    *done += (uint64_t)n;
    first += (size_t)n;
  }
}

int host_file_read(int fd, const struct iovec *iov, size_t count, uint64_t skip, uint64_t offset, uint64_t *done) {
  return transfer(fd, iov, count, skip, offset, 0, 0, done);
}

int host_file_write(int fd, const struct iovec *iov, size_t count, uint64_t skip, uint64_t offset, int durable,
                    uint64_t *done) {
  return transfer(fd, iov, count, skip, offset, 1, durable ? RWF_DSYNC : 0, done);
}

ssize_t host_file_read_now(int fd, const struct iovec *iov, size_t count, uint64_t offset) {
  if (offset > INT64_MAX || count > INT_MAX) return -EINVAL;
  return UNINTERRUPTED(preadv2(fd, iov, (int)count, (off_t)offset, RWF_NOWAIT));
}

int host_file_is_memory(int fd) {
  struct statfs facts;
  if (UNINTERRUPTED(fstatfs(fd, &facts)) < 0) return -errno;
  // TMPFS_MAGIC, RAMFS_MAGIC and HUGETLBFS_MAGIC of linux/magic.h.
  uint32_t kind = (uint32_t)facts.f_type;
  return kind == 0x01021994u || kind == 0x858458f6u || kind == 0x958458f6u;
}

int host_file_read_bytes(int fd, void *bytes, size_t count, uint64_t offset, uint64_t *done) {
  struct iovec one = {.iov_base = bytes, .iov_len = count};
  return host_file_read(fd, &one, 1, 0, offset, done);
}

int host_file_write_bytes(int fd, const void *bytes, size_t count, uint64_t offset, int durable, uint64_t *done) {
  struct iovec one = {.iov_base = (void *)bytes, .iov_len = count};
  return host_file_write(fd, &one, 1, 0, offset, durable, done);
}

int host_vectors_aligned(const struct iovec *iov, size_t count, uint64_t memory, uint64_t length) {
  uint64_t misfit = 0;
  for (size_t i = 0; i < count; i++) misfit |= ((uintptr_t)iov[i].iov_base & (memory - 1)) | (iov[i].iov_len & (length - 1));
  return misfit == 0;
}

uint64_t host_vectors_bytes(const struct iovec *iov, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) sum += iov[i].iov_len;
  return sum;
}

int host_file_sync(int fd) { return UNINTERRUPTED(fdatasync(fd)); }

int host_file_forget(int fd) { return -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); }

static int allocate(int fd, int mode, uint64_t offset, uint64_t count) {
  if (offset > INT64_MAX || count > INT64_MAX) return -EINVAL;
  return UNINTERRUPTED(fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
}

int host_file_punch(int fd, uint64_t offset, uint64_t count) { return allocate(fd, FALLOC_FL_PUNCH_HOLE, offset, count); }

int host_file_hole(int fd, uint64_t *hole, uint64_t *data) {
  off_t first = lseek(fd, 0, SEEK_HOLE);
  if (first < 0) return -errno;
  off_t next = lseek(fd, first, SEEK_DATA);
  if (next < 0 && errno != ENXIO) return -errno;
  *hole = (uint64_t)first;
  *data = next < 0 ? UINT64_MAX : (uint64_t)next;
  return 0;
}

int host_file_zero(int fd, uint64_t offset, uint64_t count) { return allocate(fd, FALLOC_FL_ZERO_RANGE, offset, count); }

static int block_range(int fd, unsigned long request, uint64_t offset, uint64_t count) {
  uint64_t range[2] = {offset, count};
  return UNINTERRUPTED(ioctl(fd, request, range));
}

int host_block_discard(int fd, uint64_t offset, uint64_t count) { return block_range(fd, BLKDISCARD, offset, count); }
int host_block_zero(int fd, uint64_t offset, uint64_t count) { return block_range(fd, BLKZEROOUT, offset, count); }
int host_block_secure_erase(int fd, uint64_t offset, uint64_t count) { return block_range(fd, BLKSECDISCARD, offset, count); }

static struct flock lock_of(int kind, uint64_t start, uint64_t count) {
  return (struct flock){
      .l_type = kind == 0 ? F_UNLCK : kind == 1 ? F_RDLCK : F_WRLCK,
      .l_whence = SEEK_SET,
      .l_start = (off_t)start,
      .l_len = (off_t)count,
  };
}

int host_lock(int fd, int kind, uint64_t start, uint64_t count) {
  struct flock lock = lock_of(kind, start, count);
  int r = UNINTERRUPTED(fcntl(fd, F_OFD_SETLK, &lock));
  return r == -EACCES ? -EAGAIN : r;
}

int host_lock_conflicts(int fd, int kind, uint64_t start, uint64_t count) {
  struct flock lock = lock_of(kind, start, count);
  int r = UNINTERRUPTED(fcntl(fd, F_OFD_GETLK, &lock));
  return r < 0 ? r : lock.l_type != F_UNLCK;
}
