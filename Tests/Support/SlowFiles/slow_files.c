// The kernel's side of FUSE is <linux/fuse.h>. A process of its own serves: one in this process could be waited for by
// the end of the process itself.
#define _GNU_SOURCE
#include "slow_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { most = 16, waiting_most = 8192, disk_node = 2, page = 65536, reads = 0, writes = 1, syncs = 2, kinds = 3 };

static struct { int root, life; pid_t pid; } systems[most];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// The server. It was forked off a process with many threads, so it may call nothing but the system.

static uint64_t disk_bytes;
static struct late { uint64_t unique, offset; int64_t due; uint32_t size; } late[kinds][waiting_most];
static unsigned first[kinds], last[kinds];
static union { struct fuse_in_header head; unsigned char bytes[(1 << 20) + 4096]; } in;
static unsigned char data[1 << 20];

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void reply(int device, uint64_t unique, int error, const void *body, size_t size) {
  struct fuse_out_header out = {.len = (uint32_t)(sizeof out + size), .error = -error, .unique = unique};
  struct iovec parts[2] = {{&out, sizeof out}, {(void *)body, size}};
  (void)!writev(device, parts, size ? 2 : 1);
}

static struct fuse_attr attributes(uint64_t node) {
  int is_disk = node == disk_node;
  return (struct fuse_attr){
      .ino = node, .size = is_disk ? disk_bytes : 0, .blocks = is_disk ? disk_bytes / 512 : 0, .mode = is_disk ? S_IFREG | 0644 : S_IFDIR | 0755,
      .nlink = 1, .blksize = 4096};
}

static void answer_read(int device, const struct late *one) {
  uint64_t size = one->offset >= disk_bytes ? 0 : one->size;
  if (size > disk_bytes - one->offset) size = disk_bytes - one->offset;
  if (size > sizeof data) size = sizeof data;
  for (uint64_t i = 0; i < size; i++) data[i] = (unsigned char)((one->offset + i) / 512 * 7 + one->offset + i);
  reply(device, one->unique, 0, data, size);
}

static void answer(int device, int kind, const struct late *one) {
  struct fuse_write_out written = {.size = one->size};
  switch (kind) {
    case reads: return answer_read(device, one);
    case writes: return reply(device, one->unique, 0, &written, sizeof written);
    default: return reply(device, one->unique, 0, NULL, 0);
  }
}

static void put_off(int kind, uint64_t unique, uint64_t offset, uint32_t size, int64_t due) {
  late[kind][last[kind]++ % waiting_most] = (struct late){.unique = unique, .offset = offset, .due = due, .size = size};
}

static void serve_one(int device, const int64_t delay[kinds]) {
  const unsigned char *body = in.bytes + sizeof in.head;
  uint64_t unique = in.head.unique;
  switch (in.head.opcode) {
    case FUSE_INIT: {
      struct fuse_init_out out = {
          .major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = page, .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO,
          .max_background = 4096, .congestion_threshold = 4096, .max_write = page, .time_gran = 1};
      return reply(device, unique, 0, &out, sizeof out);
    }
    case FUSE_LOOKUP: {
      if (strcmp((const char *)body, "disk")) return reply(device, unique, ENOENT, NULL, 0);
      struct fuse_entry_out out = {.nodeid = disk_node, .entry_valid = 1000, .attr_valid = 1000, .attr = attributes(disk_node)};
      return reply(device, unique, 0, &out, sizeof out);
    }
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
      struct fuse_attr_out out = {.attr_valid = 1000, .attr = attributes(in.head.nodeid)};
      return reply(device, unique, 0, &out, sizeof out);
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
      struct fuse_open_out out = {.fh = 1};
      return reply(device, unique, 0, &out, sizeof out);
    }
    case FUSE_READ: {
      const struct fuse_read_in *read = (const void *)body;
      return put_off(reads, unique, read->offset, read->size, now() + delay[reads]);
    }
    case FUSE_WRITE: return put_off(writes, unique, 0, ((const struct fuse_write_in *)body)->size, now() + delay[writes]);
    case FUSE_FSYNC: return put_off(syncs, unique, 0, 0, now() + delay[syncs]);
    case FUSE_STATFS: {
      struct fuse_statfs_out out = {.st = {.blocks = 1 << 20, .bfree = 1 << 19, .bavail = 1 << 19, .bsize = 4096, .namelen = 255, .frsize = 4096}};
      return reply(device, unique, 0, &out, sizeof out);
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: return reply(device, unique, 0, NULL, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return;
    default: return reply(device, unique, ENOSYS, NULL, 0);
  }
}

static void serve(int device, int life, const int64_t delay[kinds]) {
  for (;;) {
    int64_t next = -1, time = now();
    for (int kind = 0; kind < kinds; kind++) {
      while (first[kind] != last[kind] && late[kind][first[kind] % waiting_most].due <= time) {
        answer(device, kind, &late[kind][first[kind]++ % waiting_most]);
      }
      if (first[kind] != last[kind]) {
        int64_t left = late[kind][first[kind] % waiting_most].due - time;
        if (next < 0 || left < next) next = left;
      }
    }
    struct pollfd both[2] = {{device, POLLIN, 0}, {life, POLLIN, 0}};
    struct timespec limit = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
    if (ppoll(both, 2, next < 0 ? NULL : &limit, NULL) < 0 && errno != EINTR) return;
    if (both[1].revents) return;
    // As many as there are: the requests of a burst are late together.
    for (;;) {
      ssize_t n = read(device, &in, sizeof in);
      if (n < 0 && errno == ENODEV) return;
      if (n < (ssize_t)sizeof in.head) break;
      serve_one(device, delay);
    }
  }
}

// This process.

static int attach(int device) {
  int context = (int)syscall(SYS_fsopen, "fuse", 1 /* close on exec */);
  if (context < 0) return -errno;
  char number[16];
  snprintf(number, sizeof number, "%d", device);
  int root = -1;
  if (!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", "slow", 0)
      && !syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "fd", number, 0)
      && !syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "rootmode", "40000", 0)
      && !syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "user_id", "0", 0)
      && !syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "group_id", "0", 0)
      && !syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
    root = (int)syscall(SYS_fsmount, context, 1 /* close on exec */, 0);
  int error = errno;
  close(context);
  return root < 0 ? -error : root;
}

int slow_files_start(uint64_t bytes, unsigned read_ms, unsigned write_ms, unsigned sync_ms) {
  int device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (device < 0) return -errno;
  int root = attach(device), life[2], number = -ENFILE;
  if (root < 0 || pipe2(life, O_CLOEXEC)) {
    int error = root < 0 ? root : -errno;
    close(device);
    if (root >= 0) close(root);
    return error;
  }
  pthread_mutex_lock(&lock);
  for (int i = 0; i < most && number < 0; i++) if (!systems[i].pid) number = i;
  pid_t pid = number < 0 ? -1 : fork();
  if (pid == 0) {
    // It must not keep anything of this process open: least of all sockets whose end another process waits for.
    if (dup2(device, 0) < 0 || dup2(life[0], 1) < 0) _exit(1);
    syscall(SYS_close_range, 2u, ~0u, 0);
    disk_bytes = bytes;
    serve(0, 1, (const int64_t[kinds]){[reads] = read_ms * 1000000ll, [writes] = write_ms * 1000000ll, [syncs] = sync_ms * 1000000ll});
    _exit(0);
  }
  if (pid > 0) {
    systems[number].root = root;
    systems[number].life = life[1];
    systems[number].pid = pid;
  } else {
    if (number >= 0) number = -errno;
    close(root);
    close(life[1]);
  }
  pthread_mutex_unlock(&lock);
  close(life[0]);
  close(device);
  return number;
}

int slow_files_root(int number) { return systems[number].root; }

void slow_files_stop(int number) {
  pthread_mutex_lock(&lock);
  close(systems[number].life);
  close(systems[number].root);
  (void)waitpid(systems[number].pid, NULL, 0);
  systems[number].pid = 0;
  pthread_mutex_unlock(&lock);
}
