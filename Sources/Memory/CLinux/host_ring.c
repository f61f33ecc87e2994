// io_uring through liburing, behind an opaque handle: its header and the kernel's own cannot both reach Swift.
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct host_ring {
  struct io_uring ring;
  int waiting_for_owner; // made disabled; the first thread that submits becomes the single issuer
  unsigned setup;        // index of the one in use
  int registered;        // the descriptor at index 0 of the ring's own table, -1 none
};

// Best first, in the order of HOST_RING_ numbers. A kernel refuses flags it does not know with EINVAL.
static const unsigned setups[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};

int host_ring_create(unsigned entries, unsigned best, struct host_ring **result) {
  struct host_ring *ring = calloc(1, sizeof *ring);
  if (!ring) return -ENOMEM;
  int error = -EINVAL;
  for (size_t i = best; i < sizeof setups / sizeof *setups && error == -EINVAL; i++) {
    struct io_uring_params parameters = {.flags = setups[i] | IORING_SETUP_CLAMP};
    error = io_uring_queue_init_params(entries, &ring->ring, &parameters);
    ring->waiting_for_owner = !error && (setups[i] & IORING_SETUP_R_DISABLED);
    ring->setup = (unsigned)i;
  }
  if (error) {
    free(ring);
    return error;
  }
  ring->registered = -1;
  *result = ring;
  return 0;
}

void host_ring_destroy(struct host_ring *ring) {
  io_uring_queue_exit(&ring->ring);
  free(ring);
}

uint32_t host_ring_setup(const struct host_ring *ring) { return ring->setup; }

uint32_t host_ring_completion_capacity(const struct host_ring *ring) { return *ring->ring.cq.kring_entries; }

int host_ring_register_eventfd(struct host_ring *ring, int fd) { return io_uring_register_eventfd(&ring->ring, fd); }

int host_ring_register_file(struct host_ring *ring, int fd) {
  if (ring->registered >= 0) return -EBUSY;
  int error = io_uring_register_files(&ring->ring, &fd, 1);
  if (!error) ring->registered = fd;
  return error;
}

static void finish(struct host_ring *ring, struct io_uring_sqe *sqe, uint64_t tag) {
  if (sqe->fd == ring->registered && sqe->fd >= 0) {
    sqe->fd = 0;
    sqe->flags |= IOSQE_FIXED_FILE;
  }
  io_uring_sqe_set_data64(sqe, tag);
}

#define PREPARE(ring, sqe)                                       \
  struct io_uring_sqe *sqe = io_uring_get_sqe(&(ring)->ring);    \
  if (!sqe) return -EBUSY

int host_ring_read(struct host_ring *ring, int fd, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t tag) {
  PREPARE(ring, sqe);
  // One piece needs no vector: the kernel then has none to copy in.
  if (count == 1) {
    unsigned length = iov->iov_len > INT32_MAX ? INT32_MAX : (unsigned)iov->iov_len;
    io_uring_prep_read(sqe, fd, iov->iov_base, length, offset);
  } else {
    io_uring_prep_readv(sqe, fd, iov, count, offset);
  }
  finish(ring, sqe, tag);
  return 0;
}

int host_ring_write(struct host_ring *ring, int fd, const struct iovec *iov, unsigned count, uint64_t offset, int durable,
                    uint64_t tag) {
  PREPARE(ring, sqe);
  if (count == 1) {
    unsigned length = iov->iov_len > INT32_MAX ? INT32_MAX : (unsigned)iov->iov_len;
    io_uring_prep_write(sqe, fd, iov->iov_base, length, offset);
  } else {
    io_uring_prep_writev(sqe, fd, iov, count, offset);
  }
  if (durable) sqe->rw_flags = RWF_DSYNC;
  finish(ring, sqe, tag);
  return 0;
}

int host_ring_sync(struct host_ring *ring, int fd, uint64_t tag) {
  PREPARE(ring, sqe);
  io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
  finish(ring, sqe, tag);
  return 0;
}

static int prepare_allocate(struct host_ring *ring, int fd, int mode, uint64_t offset, uint64_t count, uint64_t tag) {
  PREPARE(ring, sqe);
  io_uring_prep_fallocate(sqe, fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count);
  finish(ring, sqe, tag);
  return 0;
}

int host_ring_punch(struct host_ring *ring, int fd, uint64_t offset, uint64_t count, uint64_t tag) {
  return prepare_allocate(ring, fd, FALLOC_FL_PUNCH_HOLE, offset, count, tag);
}

int host_ring_zero(struct host_ring *ring, int fd, uint64_t offset, uint64_t count, uint64_t tag) {
  return prepare_allocate(ring, fd, FALLOC_FL_ZERO_RANGE, offset, count, tag);
}

int host_ring_poll(struct host_ring *ring, int fd, uint32_t events, uint64_t tag) {
  PREPARE(ring, sqe);
  io_uring_prep_poll_add(sqe, fd, (events & HOST_READABLE ? POLLIN : 0) | (events & HOST_WRITABLE ? POLLOUT : 0));
  finish(ring, sqe, tag);
  return 0;
}

int host_ring_cancel(struct host_ring *ring, uint64_t victim, uint64_t tag) {
  PREPARE(ring, sqe);
  io_uring_prep_cancel64(sqe, victim, 0);
  finish(ring, sqe, tag);
  return 0;
}

static int settle_owner(struct host_ring *ring) {
  if (!ring->waiting_for_owner) return 0;
  // Declared in liburing's header, missing in some of its libraries.
  if (syscall(SYS_io_uring_register, ring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0) return -errno;
  ring->waiting_for_owner = 0;
  // Saves a look-up in every later call. Older kernels have no such thing, and do without.
  (void)io_uring_register_ring_fd(&ring->ring);
  return 0;
}

int host_ring_submit(struct host_ring *ring) {
  int n = settle_owner(ring);
  if (n < 0) return n;
  do n = io_uring_submit(&ring->ring);
  while (n == -EINTR);
  return n;
}

uint32_t host_ring_unsubmitted(const struct host_ring *ring) { return io_uring_sq_ready(&ring->ring); }

int host_ring_submit_and_wait(struct host_ring *ring, unsigned count, int64_t nanoseconds) {
  int n = settle_owner(ring);
  if (n < 0) return n;
  if (nanoseconds < 0) {
    do n = io_uring_submit_and_wait(&ring->ring, count);
    while (n == -EINTR);
    return n;
  }
  struct __kernel_timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
  struct io_uring_cqe *first;
  n = io_uring_submit_and_wait_timeout(&ring->ring, &first, count, &limit, NULL);
  return n == -ETIME || n == -EINTR ? 0 : n;
}

int host_ring_has_work(const struct host_ring *ring) {
  if (ring->waiting_for_owner) return 0;
  if (io_uring_cq_ready(&ring->ring)) return 1;
  return (__atomic_load_n(ring->ring.sq.kflags, __ATOMIC_ACQUIRE) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

int host_ring_reap(struct host_ring *ring, uint64_t *tags, int32_t *results, unsigned capacity) {
  struct io_uring_cqe *entries[64];
  if (capacity > 64) capacity = 64;
  if (ring->waiting_for_owner) return 0;
  // Deferred work posts its completions only when this thread asks for them; liburing's peek does so when the ring says so.
  unsigned n = io_uring_peek_batch_cqe(&ring->ring, entries, capacity);
  for (unsigned i = 0; i < n; i++) {
    tags[i] = entries[i]->user_data;
    results[i] = entries[i]->res;
  }
  io_uring_cq_advance(&ring->ring, n);
  return (int)n;
}
