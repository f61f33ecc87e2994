#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

int64_t host_stream_read(int fd, void *bytes, size_t count) {
  for (;;) {
    ssize_t n = read(fd, bytes, count);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

int64_t host_stream_write(int fd, const void *bytes, size_t count) {
  // SIGPIPE belongs to this thread's write: blocked meanwhile, and taken back if it was ours.
  sigset_t pipe_only, pending, old;
  sigemptyset(&pipe_only);
  sigaddset(&pipe_only, SIGPIPE);
  sigpending(&pending);
  pthread_sigmask(SIG_BLOCK, &pipe_only, &old);
  int64_t result;
  for (;;) {
    ssize_t n = write(fd, bytes, count);
    result = n >= 0 ? n : -errno;
    if (result != -EINTR) break;
  }
  if (result == -EPIPE && !sigismember(&pending, SIGPIPE)) {
    const struct timespec now = {0, 0};
    while (sigtimedwait(&pipe_only, NULL, &now) < 0 && errno == EINTR) {}
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return result;
}
