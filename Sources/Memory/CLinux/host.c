// Descriptors, waiting, signals, threads, memory files.
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RESULT(call) ({ __typeof__(call) r = (call); r < 0 ? -errno : r; })

const char *host_error_name(int error) { return strerrorname_np(error); }
const char *host_error_text(int error) { return strerrordesc_np(error); }

// Descriptors

// The number is released even when close() fails, so a failure is never retried.
int host_close(int fd) { return RESULT(close(fd)); }
int host_duplicate(int fd) { return RESULT(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

int host_set_nonblocking(int fd, int on) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  int wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
  return wanted == flags ? 0 : RESULT(fcntl(fd, F_SETFL, wanted));
}

int host_set_close_on_exec(int fd) { return RESULT(fcntl(fd, F_SETFD, FD_CLOEXEC)); }

static int64_t now(void) { return host_clock_monotonic(); }

static int64_t deadline_after(int64_t nanoseconds) {
  int64_t end;
  return __builtin_add_overflow(now(), nanoseconds, &end) ? INT64_MAX : end;
}

int host_poll(int fd, uint32_t events, int cancel, int64_t nanoseconds) {
  struct pollfd set[2] = {
      {.fd = fd, .events = (events & HOST_READABLE ? POLLIN : 0) | (events & HOST_WRITABLE ? POLLOUT : 0)},
      {.fd = cancel, .events = POLLIN},
  };
  int64_t end = nanoseconds < 0 ? 0 : deadline_after(nanoseconds);
  for (int64_t left = nanoseconds;;) {
    struct timespec limit = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    int n = ppoll(set, 2, nanoseconds < 0 ? NULL : &limit, NULL);
    if (n >= 0) break;
    if (errno != EINTR) return -errno;
    if (nanoseconds >= 0 && (left = end - now()) < 0) left = 0;
  }
  short r = set[0].revents;
  return (r & POLLIN ? HOST_READABLE : 0) | (r & POLLOUT ? HOST_WRITABLE : 0) | (r & POLLHUP ? HOST_HANGUP : 0) |
         (r & (POLLERR | POLLNVAL) ? HOST_FAILED : 0) | (set[1].revents ? HOST_CANCELLED : 0);
}

int host_eventfd(void) { return RESULT(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

int host_eventfd_signal(int fd) {
  uint64_t one = 1;
  for (;;) {
    if (write(fd, &one, sizeof one) >= 0) return 0;
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -errno;
  }
}

// How much was added, from what a read of `value` returned.
static int64_t drained(ssize_t n, uint64_t value) {
  if (n == 0) return -EPIPE;
  // A peer may pass a pipe: any bytes in it count as "at least one".
  if (n > 0) return n == sizeof value && value > 0 && value <= INT64_MAX ? (int64_t)value : 1;
  return errno == EAGAIN ? 0 : -errno;
}

int64_t host_eventfd_drain(int fd) {
  uint64_t value = 0;
  for (;;) {
    ssize_t n = read(fd, &value, sizeof value);
    int64_t result = drained(n, value);
    if (result != -EINTR) return result;
  }
}

int64_t host_eventfd_drain_at_once(int fd) {
  uint64_t value = 0;
  struct iovec whole = {.iov_base = &value, .iov_len = sizeof value};
  for (;;) {
    ssize_t n = preadv2(fd, &whole, 1, -1, RWF_NOWAIT);
    int64_t result = drained(n, value);
    if (result != -EINTR) return result;
  }
}

int host_epoll(void) { return RESULT(epoll_create1(EPOLL_CLOEXEC)); }

static int epoll_change(int epoll, int how, int fd, uint32_t events, uint64_t token) {
  struct epoll_event event = {
      .events = (events & HOST_READABLE ? EPOLLIN : 0) | (events & HOST_WRITABLE ? EPOLLOUT : 0) |
                (events & HOST_PEER_CLOSED ? EPOLLRDHUP : 0) | (events & HOST_EDGE ? EPOLLET : 0),
      .data.u64 = token,
  };
  return RESULT(epoll_ctl(epoll, how, fd, &event));
}

int host_epoll_add(int epoll, int fd, uint32_t events, uint64_t token) {
  return epoll_change(epoll, EPOLL_CTL_ADD, fd, events, token);
}
int host_epoll_modify(int epoll, int fd, uint32_t events, uint64_t token) {
  return epoll_change(epoll, EPOLL_CTL_MOD, fd, events, token);
}
int host_epoll_remove(int epoll, int fd) { return epoll_change(epoll, EPOLL_CTL_DEL, fd, 0, 0); }

int host_epoll_wait(int epoll, uint64_t *tokens, uint32_t *events, int capacity, int64_t nanoseconds) {
  struct epoll_event ready[HOST_EPOLL_BATCH];
  if (capacity > HOST_EPOLL_BATCH) capacity = HOST_EPOLL_BATCH;
  int64_t end = nanoseconds <= 0 ? 0 : deadline_after(nanoseconds);
  int n;
  for (int64_t left = nanoseconds;;) {
    int64_t milliseconds = left < 0 ? -1 : left / 1000000 + (left % 1000000 != 0);
    n = epoll_wait(epoll, ready, capacity, milliseconds > INT_MAX ? INT_MAX : (int)milliseconds);
    if (n > 0) break;
    if (n < 0 && errno != EINTR) return -errno;
    if (nanoseconds < 0) continue;
    if (nanoseconds == 0 || (left = end - now()) <= 0) return 0;
  }
  for (int i = 0; i < n; i++) {
    uint32_t e = ready[i].events;
    tokens[i] = ready[i].data.u64;
    events[i] = (e & EPOLLIN ? HOST_READABLE : 0) | (e & EPOLLOUT ? HOST_WRITABLE : 0) | (e & EPOLLHUP ? HOST_HANGUP : 0) |
                (e & EPOLLERR ? HOST_FAILED : 0) | (e & EPOLLRDHUP ? HOST_PEER_CLOSED : 0);
  }
  return n;
}

int host_timer(void) { return RESULT(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)); }

int host_timer_set(int fd, int64_t first, int64_t interval) {
  struct itimerspec when = {
      .it_value = {.tv_sec = first / 1000000000, .tv_nsec = first % 1000000000},
      .it_interval = {.tv_sec = interval / 1000000000, .tv_nsec = interval % 1000000000},
  };
  return RESULT(timerfd_settime(fd, 0, &when, NULL));
}

static void signals_of(uint64_t mask, sigset_t *set) {
  sigemptyset(set);
  for (int i = 0; i < 64; i++)
    if (mask >> i & 1) sigaddset(set, i + 1);
}

int host_signals_block(uint64_t mask) {
  sigset_t set;
  signals_of(mask, &set);
  return -pthread_sigmask(SIG_BLOCK, &set, NULL);
}

int host_signals_unblock(uint64_t mask) {
  sigset_t set;
  signals_of(mask, &set);
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int host_signalfd(uint64_t mask) {
  sigset_t set;
  signals_of(mask, &set);
  return RESULT(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int host_signalfd_read(int fd) {
  struct signalfd_siginfo info;
  for (;;) {
    if (read(fd, &info, sizeof info) == sizeof info) return (int)info.ssi_signo;
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -errno;
  }
}

int host_ignore_sigpipe(void) {
  struct sigaction ignore = {.sa_handler = SIG_IGN};
  return RESULT(sigaction(SIGPIPE, &ignore, NULL));
}

// Threads

struct start {
  void (*body)(void *);
  void *context;
  char name[16];
};

static void *run(void *argument) {
  struct start start = *(struct start *)argument;
  free(argument);
  pthread_setname_np(pthread_self(), start.name);
  start.body(start.context);
  return NULL;
}

int host_thread_start(uint64_t *thread, const char *name, void (*body)(void *), void *context) {
  struct start *start = calloc(1, sizeof *start);
  if (!start) return -ENOMEM;
  start->body = body;
  start->context = context;
  strncpy(start->name, name, sizeof start->name - 1);
  // Blocked across the start, so that the thread never sees a signal: the process's signals go to the thread that asked
  // for them. Signals that a thread causes itself stay unblocked: blocked, they would kill the process, and the handler
  // has to repair a lost page of a mapping.
  sigset_t all, before;
  sigfillset(&all);
  const int own[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t handle;
  int error = pthread_create(&handle, NULL, run, start);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    free(start);
    return -error;
  }
  *thread = (uint64_t)handle;
  return 0;
}

int host_thread_join(uint64_t thread) { return -pthread_join((pthread_t)thread, NULL); }
int host_thread_detach(uint64_t thread) { return -pthread_detach((pthread_t)thread); }
int host_thread_is_current(uint64_t thread) { return pthread_equal((pthread_t)thread, pthread_self()) != 0; }

int host_thread_clock(int32_t *clock) {
  clockid_t id;
  int error = pthread_getcpuclockid(pthread_self(), &id);
  if (!error) *clock = id;
  return -error;
}

int64_t host_clock_read(int32_t clock) {
  struct timespec t;
  if (clock_gettime(clock, &t) < 0) return -errno;
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t host_clock_monotonic(void) { return host_clock_read(CLOCK_MONOTONIC); }

// Memory files

int host_memfd_huge(const char *name) { return RESULT(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB)); }

int host_memfd(const char *name) { return RESULT(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)); }

int host_truncate(int fd, uint64_t size) {
  if (size > INT64_MAX) return -EFBIG;
  int r;
  do r = ftruncate(fd, (off_t)size);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

int host_seals_add(int fd, uint32_t seals) {
  int bits = (seals & HOST_SEAL_SHRINK ? F_SEAL_SHRINK : 0) | (seals & HOST_SEAL_GROW ? F_SEAL_GROW : 0) |
             (seals & HOST_SEAL_WRITE ? F_SEAL_WRITE : 0) | (seals & HOST_SEAL_SEALS ? F_SEAL_SEAL : 0);
  return RESULT(fcntl(fd, F_ADD_SEALS, bits));
}

int host_seals_get(int fd) {
  int bits = fcntl(fd, F_GET_SEALS);
  if (bits < 0) return -errno;
  return (bits & F_SEAL_SHRINK ? HOST_SEAL_SHRINK : 0) | (bits & F_SEAL_GROW ? HOST_SEAL_GROW : 0) |
         (bits & F_SEAL_WRITE ? HOST_SEAL_WRITE : 0) | (bits & F_SEAL_SEAL ? HOST_SEAL_SEALS : 0);
}

int host_random(void *bytes, size_t count) {
  for (size_t done = 0; done < count;) {
    ssize_t n = getrandom((char *)bytes + done, count - done, 0);
    if (n < 0 && errno != EINTR) return -errno;
    if (n > 0) done += (size_t)n;
  }
  return 0;
}

int host_open_files_limit(uint64_t *soft, uint64_t *hard) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -errno;
  *soft = limit.rlim_cur;
  *hard = limit.rlim_max;
  return 0;
}

int host_set_open_files_limit(uint64_t soft) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -errno;
  limit.rlim_cur = soft < limit.rlim_max ? soft : limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0 ? 0 : -errno;
}

// Documentation/power/pm_qos_interface.rst of the kernel.
int host_limit_idle_latency(int32_t microseconds) {
  int fd = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t n = write(fd, &microseconds, sizeof microseconds);
  if (n == (ssize_t)sizeof microseconds) return fd;
  int error = n < 0 ? errno : EIO;
  close(fd);
  return -error;
}

int host_idle_latency(void) {
  int32_t microseconds = 0;
  int fd = open("/dev/cpu_dma_latency", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t n = read(fd, &microseconds, sizeof microseconds);
  int error = n < 0 ? errno : EIO;
  close(fd);
  return n == (ssize_t)sizeof microseconds ? microseconds : -error;
}

int host_idle_is_outside(void) {
  char name[32] = "";
  int fd = open("/sys/devices/system/cpu/cpuidle/current_driver", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read(fd, name, sizeof name - 1);
  close(fd);
  return n > 0 && strcmp(name, "haltpoll\n") == 0;
}
