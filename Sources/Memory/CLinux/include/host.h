// The host's system interface as plain functions for the Swift module HostIO.
//
// Swift sees scalars, arrays of scalars and one opaque handle: a C structure that holds a pointer would be an "unsafe type" there,
// and half of Linux's constants and macros are not importable at all. Every function returns a value >= 0, or -errno.
#ifndef SLUICE_HOST_H
#define SLUICE_HOST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

// Errors

/// "ENOENT", or NULL for a number the C library does not know.
const char *host_error_name(int error);
/// "No such file or directory", or NULL.
const char *host_error_text(int error);

// Descriptors

int host_close(int fd);
/// A second descriptor for the same description, close-on-exec.
int host_duplicate(int fd);
int host_set_nonblocking(int fd, int on);
int host_set_close_on_exec(int fd);

#define HOST_READABLE 1u
#define HOST_WRITABLE 2u
#define HOST_HANGUP 4u
#define HOST_FAILED 8u
/// The peer closed its writing half.
#define HOST_PEER_CLOSED 16u
#define HOST_EDGE 32u
#define HOST_CANCELLED 64u

/// Waits for one descriptor, and for `cancel` (if >= 0) to become readable. Returns HOST_ bits, 0 at the end of the time.
/// `nanoseconds` < 0: no limit. Interruptions by signals are waited through.
int host_poll(int fd, uint32_t events, int cancel, int64_t nanoseconds);

int host_eventfd(void);
/// Adds one; a full counter counts as signalled. 0 or -errno.
int host_eventfd_signal(int fd);
/// What had been added since the last time, 0 if nothing; -EPIPE if the descriptor can never be signalled again.
int64_t host_eventfd_drain(int fd);
/// The same, without waiting whether the description blocks or not; -EOPNOTSUPP if it has no such read, as a pipe before Linux 6.4.
int64_t host_eventfd_drain_at_once(int fd);

/// One read or write of a pipe, socket or file, without waiting if the description is non-blocking. 0 from the read:
/// the end. A pipe without a reader gives -EPIPE, and no signal.
int64_t host_stream_read(int fd, void *bytes, size_t count);
int64_t host_stream_write(int fd, const void *bytes, size_t count);

int host_epoll(void);
int host_epoll_add(int epoll, int fd, uint32_t events, uint64_t token);
int host_epoll_modify(int epoll, int fd, uint32_t events, uint64_t token);
int host_epoll_remove(int epoll, int fd);
#define HOST_EPOLL_BATCH 64
/// Fills the two arrays (at most HOST_EPOLL_BATCH entries). Returns how many, 0 at the end of the time.
int host_epoll_wait(int epoll, uint64_t *tokens, uint32_t *events, int capacity, int64_t nanoseconds);

int host_timer(void);
/// First expiry after `first` ns (0 disarms), then every `interval` ns (0: once).
int host_timer_set(int fd, int64_t first, int64_t interval);

/// Blocks the signals of `mask` (bit n - 1 is signal n) in this thread, and threads it starts.
int host_signals_block(uint64_t mask);
int host_signals_unblock(uint64_t mask);
int host_signalfd(uint64_t mask);
/// The next signal's number, 0 if none is waiting.
int host_signalfd_read(int fd);
/// A write to a pipe or socket without a reader must be an error, not the end of the process.
int host_ignore_sigpipe(void);

// Threads

/// Starts a thread with every signal blocked that it does not bring upon itself. `name` is cut to 15 bytes.
int host_thread_start(uint64_t *thread, const char *name, void (*body)(void *), void *context);
int host_thread_join(uint64_t thread);
int host_thread_detach(uint64_t thread);
int host_thread_is_current(uint64_t thread);
/// The calling thread's CPU clock, usable from other threads until it ends.
int host_thread_clock(int32_t *clock);
/// Nanoseconds on a clock, or -errno.
int64_t host_clock_read(int32_t clock);
int64_t host_clock_monotonic(void);

// Processes

/// Starts a program, looked for in PATH, with nothing to read and `output` as standard output and error. `words` are `count`
/// strings, each with its NUL, the program's name first.
int host_process_start(const char *words, size_t count, int output, int32_t *process);
/// 1 when a process of ours has ended, with its status, or the signal that killed it; 0 while it runs. To be asked once after
/// the end.
int host_process_look(int32_t process, int32_t *status, int32_t *signal);
int host_process_signal(int32_t process, int signal);

// Memory files

int host_memfd(const char *name);
int host_memfd_huge(const char *name);
int host_truncate(int fd, uint64_t size);
#define HOST_SEAL_SHRINK 1u
#define HOST_SEAL_GROW 2u
#define HOST_SEAL_WRITE 4u
#define HOST_SEAL_SEALS 8u
int host_seals_add(int fd, uint32_t seals);
int host_seals_get(int fd);

// Randomness

/// Fills all of `bytes` from the kernel's generator, which is seeded by the time it answers. 0 or -errno.
int host_random(void *bytes, size_t count);

// Unix sockets

int host_unix_socket(void);
int host_unix_pair(int *first, int *second);
int host_unix_bind(int fd, const char *path);
/// Does not wait: -EAGAIN if the listener's queue is full.
int host_unix_connect(int fd, const char *path);
int host_listen(int fd, int backlog);
/// The next connection, -EAGAIN if none is waiting. The listening socket should be non-blocking.
int host_accept(int fd);
/// 1: listening, 0: not; an error if not a socket.
int host_socket_listens(int fd);
/// AF_UNIX and SOCK_STREAM: 1, else 0; an error if not a socket.
int host_socket_is_unix_stream(int fd);
int host_socket_peer(int fd, int32_t *process, uint32_t *user, uint32_t *group);
int host_socket_shutdown(int fd);
int host_socket_pending(int fd);
// Bytes that are here, without taking them. -EAGAIN when there are none yet, 0 at the end.
ssize_t host_peek(int fd, void *bytes, size_t count);

#define HOST_MAX_PASSED 253
/// One sendmsg without waiting; descriptors travel with the first byte.
ssize_t host_send(int fd, const void *bytes, size_t count, const int *fds, int passed);
/// One recvmsg without waiting. Up to HOST_MAX_PASSED descriptors land in `fds` (close-on-exec). `*truncated` is set,
/// and all that arrived is closed, if some did not fit or the process may not open more.
ssize_t host_receive(int fd, void *bytes, size_t count, int *fds, int *received, int *truncated);

// Paths

struct host_identity {
  uint64_t device, inode;
  uint32_t mode;
};
#define HOST_KIND_REGULAR 1
#define HOST_KIND_BLOCK 2
#define HOST_KIND_DIRECTORY 3
#define HOST_KIND_SOCKET 4
#define HOST_KIND_OTHER 5
int host_path_identity(const char *path, struct host_identity *identity);
int host_kind(uint32_t mode);
int host_unlink(const char *path);
/// Opens the directory that holds `path` and takes its flock; -EAGAIN if another process holds it. Closing releases it.
int host_lock_parent(const char *path);

// Files and block devices

struct host_file_facts {
  uint64_t size;           // bytes
  uint64_t allocated;      // bytes
  uint64_t device, inode;
  uint32_t kind;           // HOST_KIND_
  uint32_t logical_block;  // bytes; 512 for a regular file
  uint32_t physical_block; // bytes; st_blksize for a regular file
  uint32_t minimum_io, optimal_io; // bytes, 0 unknown
  int32_t alignment_offset;        // bytes from the start of the device to the first naturally aligned block; -1 misaligned
  uint32_t discard_granularity;    // bytes, 0 unknown
  uint64_t discard_max;            // bytes in one request, 0: unknown or unsupported
};

/// Never waits for a FIFO's peer.
int host_file_open(const char *path, int writable, int direct);
int host_file_facts(int fd, struct host_file_facts *facts);
int host_file_size(int fd, uint64_t *size);
/// Alignment O_DIRECT wants on this descriptor: of memory and of offset and length, in bytes. -ENOTSUP if it cannot.
int host_file_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);

/// Moves all of `iov` but its first `skip` bytes, in as many calls as it takes, however long the array. `*done` counts bytes
/// also when an error is returned. Reading ends early, with 0, at the end of the file.
int host_file_read(int fd, const struct iovec *iov, size_t count, uint64_t skip, uint64_t offset, uint64_t *done);
/// `durable`: each piece is on stable storage before the call returns (RWF_DSYNC).
int host_file_write(int fd, const struct iovec *iov, size_t count, uint64_t skip, uint64_t offset, int durable, uint64_t *done);
/// Reads what needs no waiting, at most IOV_MAX pieces: bytes, possibly fewer than asked for; -EAGAIN if there is none,
/// -EOPNOTSUPP where the kernel cannot tell.
ssize_t host_file_read_now(int fd, const struct iovec *iov, size_t count, uint64_t offset);
/// 1 if the file's contents are memory (tmpfs and its like), 0 if not.
int host_file_is_memory(int fd);
int host_file_read_bytes(int fd, void *bytes, size_t count, uint64_t offset, uint64_t *done);
int host_file_write_bytes(int fd, const void *bytes, size_t count, uint64_t offset, int durable, uint64_t *done);
/// 1 if every address is a multiple of `memory` and every length one of `length`, both powers of two.
int host_vectors_aligned(const struct iovec *iov, size_t count, uint64_t memory, uint64_t length);
uint64_t host_vectors_bytes(const struct iovec *iov, size_t count);
int host_file_sync(int fd);
/// Advises the kernel to drop what it remembers of the file and has written; 0 or -errno.
int host_file_forget(int fd);
int host_file_punch(int fd, uint64_t offset, uint64_t count);
// The first hole, and where data begins again behind it (UINT64_MAX: nowhere). A file without one has it at its end.
int host_file_hole(int fd, uint64_t *hole, uint64_t *data);
int host_file_zero(int fd, uint64_t offset, uint64_t count);
int host_block_discard(int fd, uint64_t offset, uint64_t count);
int host_block_zero(int fd, uint64_t offset, uint64_t count);
int host_block_secure_erase(int fd, uint64_t offset, uint64_t count);

/// Open-file-description lock. kind 0: release, 1: shared, 2: exclusive. -EAGAIN if another lock conflicts.
int host_lock(int fd, int kind, uint64_t start, uint64_t count);
/// 1 if a lock of this kind would be refused.
int host_lock_conflicts(int fd, int kind, uint64_t start, uint64_t count);

// io_uring

struct host_ring;
#define HOST_RING_DEFERRED 0u
#define HOST_RING_SINGLE_ISSUER 1u
#define HOST_RING_COOPERATIVE 2u
#define HOST_RING_PLAIN 3u
/// Makes a ring with the first set-up, from `best` on, that this kernel takes. It may be made on one thread and used on
/// another: the first submission settles whose it is.
int host_ring_create(unsigned entries, unsigned best, struct host_ring **ring);
void host_ring_destroy(struct host_ring *ring);
uint32_t host_ring_setup(const struct host_ring *ring);
uint32_t host_ring_completion_capacity(const struct host_ring *ring);
int host_ring_register_eventfd(struct host_ring *ring, int fd);
/// Requests on this descriptor skip the look-up from now on. It stays open with the ring.
int host_ring_register_file(struct host_ring *ring, int fd);
// Prepare one request each. -EBUSY: the submission queue is full, submit first.
int host_ring_read(struct host_ring *ring, int fd, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t tag);
int host_ring_write(struct host_ring *ring, int fd, const struct iovec *iov, unsigned count, uint64_t offset, int durable,
                    uint64_t tag);
int host_ring_sync(struct host_ring *ring, int fd, uint64_t tag);
int host_ring_punch(struct host_ring *ring, int fd, uint64_t offset, uint64_t count, uint64_t tag);
int host_ring_zero(struct host_ring *ring, int fd, uint64_t offset, uint64_t count, uint64_t tag);
int host_ring_poll(struct host_ring *ring, int fd, uint32_t events, uint64_t tag);
int host_ring_cancel(struct host_ring *ring, uint64_t victim, uint64_t tag);
int host_ring_submit(struct host_ring *ring);
uint32_t host_ring_unsubmitted(const struct host_ring *ring);
/// Submits and waits until `count` completions are there or the time is over (< 0: no limit).
int host_ring_submit_and_wait(struct host_ring *ring, unsigned count, int64_t nanoseconds);
/// Whether completions, or deferred work that this thread has to ask for, are there: nothing signals either again.
int host_ring_has_work(const struct host_ring *ring);
/// Takes completions; never waits.
int host_ring_reap(struct host_ring *ring, uint64_t *tags, int32_t *results, unsigned capacity);

// The number of descriptors this process may have open: soft and hard limit. 0 or -errno.
int host_open_files_limit(uint64_t *soft, uint64_t *hard);
int host_set_open_files_limit(uint64_t soft);

// Asks the kernel that an idle processor be back at work within so many microseconds, for as long as the descriptor that is
// returned stays open; or -errno. 0 keeps idle processors from stopping at all.
int host_limit_idle_latency(int32_t microseconds);
// The limit in force now, or -errno.
int host_idle_latency(void);
// Whether a processor that has nothing to do is stopped by a hypervisor below this kernel.
int host_idle_is_outside(void);

#endif
